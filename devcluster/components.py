"""What runs: each component's command, configuration and port, in the order in which they start."""

import hashlib
import json
from dataclasses import dataclass, field

from devcluster.pki import FRONT_PROXY, write
from devcluster.places import (
    API_PORT,
    BRIDGE,
    DNS_SERVICE,
    ETCD_PORTS,
    KUBELET_PORT,
    METRICS_PORT,
    NODE,
    NODE_ADDRESS,
    NODE_RUN,
    NODE_STATE,
    POD_RANGE,
    REGISTRY_PORT,
    SERVICE_RANGE,
    Places,
)

PAUSE_IMAGE = "localhost:5000/pause:1"
NETWORK = "sandboxd-devcluster"
"""Name of the pods' network; the packet filter's rules carry it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One process of the cluster."""

    name: str
    command: tuple[str, ...]
    ports: tuple[int, ...] = ()
    files: tuple[str, ...] = field(default=(), repr=False)
    """What its configuration says, so that a change of it starts it anew."""

    @property
    def digest(self) -> str:
        """Hash of everything that it is started with."""
        return hashlib.sha256(repr((self.command, self.files)).encode()).hexdigest()[:16]


def components(places: Places) -> list[Component]:
    """Write their configuration and return them. The programs are named by their build: another build is a change."""
    made = [_etcd(places), _apiserver(places), *_controllers(places), _registry(places), _containerd(places)]
    return [*made, _kubelet(places), *_network(places), _metrics(places)]


def _kubelab(places: Places, component: str, *flags: str) -> tuple[str, ...]:
    return (str((places.bin / "kubelab").resolve()), component, *flags)


def _etcd(places: Places) -> Component:
    client, peer = (f"http://127.0.0.1:{port}" for port in ETCD_PORTS)
    flags = ["--data-dir", str(places.data / "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client]
    flags += ["--listen-peer-urls", peer, "--unsafe-no-fsync", "--log-level", "warn"]
    return Component(name="etcd", command=_kubelab(places, "etcd", *flags), ports=ETCD_PORTS)


def _apiserver(places: Places) -> Component:
    pki = places.pki
    flags = {
        "etcd-servers": f"http://127.0.0.1:{ETCD_PORTS[0]}",
        "bind-address": "0.0.0.0",  # noqa: S104  pods must be able to try it: that they cannot is what is tested
        "advertise-address": NODE_ADDRESS,
        "secure-port": str(API_PORT),
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
        "client-ca-file": pki / "ca.crt",
        "kubelet-client-certificate": pki / "admin.crt",
        "kubelet-client-key": pki / "admin.key",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-key-file": pki / "sa.pub",
        "service-account-signing-key-file": pki / "sa.key",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-cluster-ip-range": SERVICE_RANGE,
        "authorization-mode": "Node,RBAC",
        "allow-privileged": "true",
        "enable-admission-plugins": "NodeRestriction",
        # What it needs to pass requests on to other API servers, such as that of metrics.
        "requestheader-client-ca-file": pki / "front-proxy-ca.crt",
        "requestheader-allowed-names": FRONT_PROXY,
        "requestheader-username-headers": "X-Remote-User",
        "requestheader-group-headers": "X-Remote-Group",
        "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        "proxy-client-cert-file": pki / f"{FRONT_PROXY}.crt",
        "proxy-client-key-file": pki / f"{FRONT_PROXY}.key",
        "enable-aggregator-routing": "true",  # to the endpoint itself: they may be asked for before kube-proxy runs
    }
    command = _kubelab(places, "kube-apiserver", *(f"--{name}={value}" for name, value in flags.items()))
    return Component(name="kube-apiserver", command=command, ports=(API_PORT,), files=(_authority(places),))


def _authority(places: Places) -> str:
    return (places.pki / "ca.crt").read_text()


def _controllers(places: Places) -> list[Component]:
    manager = ["--kubeconfig", str(places.etc / "controller-manager.kubeconfig"), "--leader-elect=false"]
    manager += ["--service-account-private-key-file", str(places.pki / "sa.key"), "--use-service-account-credentials"]
    manager += ["--root-ca-file", str(places.pki / "ca.crt"), "--controllers", "*,-nodeipam"]
    manager += ["--enable-hostpath-provisioner"]
    # A claim that missed its event is looked at again after 15 s, and 20 requests a second are the default's bound.
    manager += ["--pvclaimbinder-sync-period", "1s", "--kube-api-qps", "300", "--kube-api-burst", "600"]
    manager += ["--horizontal-pod-autoscaler-sync-period", "5s"]  # tests wait for it; 15 s by default
    scheduler = ["--kubeconfig", str(places.etc / "scheduler.kubeconfig"), "--leader-elect=false"]
    flags = {"kube-controller-manager": (10257, manager), "kube-scheduler": (10259, scheduler)}
    return [
        Component(name=name, command=_kubelab(places, name, *given), ports=(port,), files=(_authority(places),))
        for name, (port, given) in flags.items()
    ]


def _registry(places: Places) -> Component:
    text = json.dumps(
        {
            "version": "0.1",
            "storage": {
                "filesystem": {"rootdirectory": str(places.data / "registry")},
                "delete": {"enabled": True},
            },
            "http": {"addr": f"0.0.0.0:{REGISTRY_PORT}"},
        }
    )
    path = places.etc / "registry.yml"
    write(path, text)
    return Component(
        name="registry", command=("docker-registry", "serve", str(path)), ports=(REGISTRY_PORT,), files=(text,)
    )


def _containerd(places: Places) -> Component:
    address = f"http://127.0.0.1:{REGISTRY_PORT}"
    write(
        places.etc / "certs.d" / f"localhost:{REGISTRY_PORT}" / "hosts.toml",
        f'server = "{address}"\n[host."{address}"]\n  capabilities = ["pull", "resolve"]\n',
    )
    plugins = [
        {
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_RANGE}]], "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    network = json.dumps({"cniVersion": "1.0.0", "name": NETWORK, "plugins": plugins})
    for left in places.cni_etc.glob("*"):
        left.unlink()
    write(places.cni_etc / "10-devcluster.conflist", network)
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE nothing may lower its OOM score, and every pod would fail.
    text = f"""version = 3
root = "{NODE_STATE}/containerd"
state = "{NODE_RUN}/containerd"
[grpc]
  address = "{places.socket}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{places.cni_etc}"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "{places.bin}/runc"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE_IMAGE}"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "{places.etc}/certs.d"
"""
    path = places.etc / "containerd.toml"
    write(path, text)
    program = str((places.bin / "containerd").resolve())
    return Component(name="containerd", command=(program, "-c", str(path)), files=(text, network))


def _kubelet(places: Places) -> Component:
    pki = places.pki
    text = json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,  # it runs where the machine still has cgroup v1, too
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": "/",
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{places.socket}",
            "clusterDNS": [DNS_SERVICE],
            "clusterDomain": "cluster.local",
            "authentication": {
                "x509": {"clientCAFile": str(pki / "ca.crt")},
                "webhook": {"enabled": True},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pki / "kubelet.crt"),
            "tlsPrivateKeyFile": str(pki / "kubelet.key"),
            "singleProcessOOMKill": True,  # the default of cgroup v1: an OOM ends a process, not the agent with it
            "maxPods": 250,
            "podPidsLimit": 4096,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1Gi", "imagefs.available": "1Gi"},
            "serializeImagePulls": False,
            "syncFrequency": "10s",  # a changed Secret is in the pods' files after this, and not after a minute
            "kubeAPIQPS": 300,
            "kubeAPIBurst": 600,
        }
    )
    path = places.etc / "kubelet.yaml"
    write(path, text)
    flags = ["--config", str(path), "--kubeconfig", str(places.etc / "kubelet.kubeconfig")]
    flags += ["--hostname-override", NODE, "--node-ip", NODE_ADDRESS, "--root-dir", f"{NODE_STATE}/kubelet"]
    command = _kubelab(places, "kubelet", *flags)
    return Component(name="kubelet", command=command, ports=(KUBELET_PORT,), files=(text, _authority(places)))


def _network(places: Places) -> list[Component]:
    """Services and policies. The latter's enforcer ends at once when it does not know the node: it comes last."""
    admin = ["--kubeconfig", str(places.kubeconfig)]
    proxy = [*admin, "--hostname-override", NODE, "--cluster-cidr", POD_RANGE, "--proxy-mode", "nftables"]
    for name in ("max-per-core", "tcp-timeout-established", "tcp-timeout-close-wait"):
        proxy += [f"--conntrack-{name}", "0"]
    policies = [*admin, "--node", NODE, "--service-cidr", SERVICE_RANGE]
    flags = {"kube-proxy": ((10249, 10256), proxy), "netpol": ((), policies)}
    return [
        Component(name=name, command=_kubelab(places, name, *given), ports=ports, files=(_authority(places),))
        for name, (ports, given) in flags.items()
    ]


def _metrics(places: Places) -> Component:
    """What autoscalers ask how much pods use. It looks at this node alone: made-up ones have no kubelet."""
    flags = {
        "kubeconfig": places.kubeconfig,
        "authentication-kubeconfig": places.kubeconfig,
        "authorization-kubeconfig": places.kubeconfig,
        "bind-address": NODE_ADDRESS,
        "secure-port": str(METRICS_PORT),
        "tls-cert-file": places.pki / "metrics-server.crt",
        "tls-private-key-file": places.pki / "metrics-server.key",
        "kubelet-certificate-authority": places.pki / "ca.crt",
        "kubelet-client-certificate": places.pki / "admin.crt",
        "kubelet-client-key": places.pki / "admin.key",
        "kubelet-preferred-address-types": "InternalIP",
        "node-selector": f"kubernetes.io/hostname={NODE}",
        "metric-resolution": "10s",  # the least that it takes; a request must be quicker
        "kubelet-request-timeout": "5s",
    }
    command = _kubelab(places, "metrics-server", *(f"--{name}={value}" for name, value in flags.items()))
    return Component(name="metrics-server", command=command, ports=(METRICS_PORT,), files=(_authority(places),))
