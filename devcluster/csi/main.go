// A CSI driver to develop and test with: volumes are directories of the node, snapshots are copies of them.
//
// It speaks CSI with the real sidecars and the real kubelet, at which it registers itself. It knows one node, enforces
// no sizes, and is told by files beside its volumes what to get wrong.
package main

import (
	"context"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer

	name, node, root, socket string
}

func main() {
	d := &driver{}
	flag.StringVar(&d.name, "name", "dirs.csi.sandboxd.dev", "of the driver")
	flag.StringVar(&d.node, "node", "", "name of the node")
	flag.StringVar(&d.root, "root", "", "directory of volumes and snapshots")
	kubelet := flag.String("kubelet", "", "the kubelet's root directory")
	flag.Parse()
	if d.node == "" || d.root == "" || *kubelet == "" {
		log.Fatal("-node, -root and -kubelet must be given")
	}
	for _, one := range []string{"volumes", "snapshots"} {
		check(os.MkdirAll(filepath.Join(d.root, one), 0o755))
	}
	d.socket = filepath.Join(*kubelet, "plugins", d.name, "csi.sock")
	plugin := grpc.NewServer(grpc.UnaryInterceptor(logged))
	csi.RegisterIdentityServer(plugin, d)
	csi.RegisterControllerServer(plugin, d)
	csi.RegisterNodeServer(plugin, d)
	go serve(plugin, d.socket)
	registrar := grpc.NewServer(grpc.UnaryInterceptor(logged))
	registration.RegisterRegistrationServer(registrar, d)
	registry := filepath.Join(*kubelet, "plugins_registry", d.name+"-reg.sock")
	go serve(registrar, registry)
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGINT)
	<-ended
	registrar.Stop()
	plugin.Stop()
}

func serve(server *grpc.Server, socket string) {
	check(os.MkdirAll(filepath.Dir(socket), 0o750))
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		log.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	check(err)
	check(server.Serve(listener))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func logged(ctx context.Context, request any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	answer, err := next(ctx, request)
	if err != nil || strings.Contains(info.FullMethod, "Create") || strings.Contains(info.FullMethod, "Delete") {
		log.Printf("%s {%v} {%v} %v", info.FullMethod, request, answer, err)
	}
	return answer, err
}

func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: d.name, Endpoint: d.socket, SupportedVersions: []string{"1.0.0"},
	}, nil
}

func (d *driver) NotifyRegistrationStatus(
	_ context.Context, status *registration.RegistrationStatus,
) (*registration.RegistrationStatusResponse, error) {
	log.Printf("registered at the kubelet: %v %s", status.PluginRegistered, status.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: d.name, VendorVersion: "1"}, nil
}

func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}

func (d *driver) GetPluginCapabilities(
	context.Context, *csi.GetPluginCapabilitiesRequest,
) (*csi.GetPluginCapabilitiesResponse, error) {
	controller := &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE}
	capability := &csi.PluginCapability{Type: &csi.PluginCapability_Service_{Service: controller}}
	return &csi.GetPluginCapabilitiesResponse{Capabilities: []*csi.PluginCapability{capability}}, nil
}

func (d *driver) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	answer := &csi.ControllerGetCapabilitiesResponse{}
	for _, one := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
	} {
		rpc := &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: one}}
		answer.Capabilities = append(answer.Capabilities, &csi.ControllerServiceCapability{Type: rpc})
	}
	return answer, nil
}

func (d *driver) NodeGetCapabilities(
	context.Context, *csi.NodeGetCapabilitiesRequest,
) (*csi.NodeGetCapabilitiesResponse, error) {
	return &csi.NodeGetCapabilitiesResponse{}, nil
}

func (d *driver) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: d.node}, nil
}
