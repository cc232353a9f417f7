package main

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const smallest = 1 << 20

var named = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,200}$`)

// What is known of a volume or of a snapshot, beside its files.
type facts struct {
	Source string
	Bytes  int64
	Time   time.Time
}

func (d *driver) CreateVolume(_ context.Context, wanted *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if err := d.trouble(wanted.Name); err != nil {
		return nil, err
	}
	made := facts{Bytes: max(smallest, wanted.GetCapacityRange().GetRequiredBytes()), Time: time.Now()}
	from := ""
	if source := wanted.GetVolumeContentSource(); source != nil {
		made.Source = source.GetSnapshot().GetSnapshotId()
		snapshot, err := d.read("snapshots", made.Source)
		if err != nil {
			return nil, err
		}
		if made.Bytes < snapshot.Bytes {
			return nil, status.Errorf(codes.OutOfRange, "the snapshot needs %d bytes", snapshot.Bytes)
		}
		from = d.place("snapshots", made.Source)
	}
	found, err := d.make("volumes", wanted.Name, from, made)
	if err != nil {
		return nil, err
	}
	if found.Source != made.Source || found.Bytes != made.Bytes {
		return nil, status.Errorf(codes.AlreadyExists, "there is another volume %s", wanted.Name)
	}
	volume := &csi.Volume{VolumeId: wanted.Name, CapacityBytes: found.Bytes, ContentSource: wanted.VolumeContentSource}
	return &csi.CreateVolumeResponse{Volume: volume}, nil
}

func (d *driver) DeleteVolume(_ context.Context, gone *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	return &csi.DeleteVolumeResponse{}, d.remove("volumes", gone.VolumeId)
}

func (d *driver) ValidateVolumeCapabilities(
	_ context.Context, asked *csi.ValidateVolumeCapabilitiesRequest,
) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if _, err := d.read("volumes", asked.VolumeId); err != nil {
		return nil, err
	}
	confirmed := &csi.ValidateVolumeCapabilitiesResponse_Confirmed{VolumeCapabilities: asked.VolumeCapabilities}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: confirmed}, nil
}

// CreateSnapshot is asked again until what is cut is ready, which it is not as long as the file `hold` is there.
func (d *driver) CreateSnapshot(
	_ context.Context, wanted *csi.CreateSnapshotRequest,
) (*csi.CreateSnapshotResponse, error) {
	if err := d.trouble(wanted.Name); err != nil {
		return nil, err
	}
	volume, err := d.read("volumes", wanted.SourceVolumeId)
	if err != nil {
		return nil, err
	}
	made := facts{Source: wanted.SourceVolumeId, Bytes: volume.Bytes, Time: time.Now()}
	found, err := d.make("snapshots", wanted.Name, d.place("volumes", wanted.SourceVolumeId), made)
	if err != nil {
		return nil, err
	}
	if found.Source != made.Source {
		return nil, status.Errorf(codes.AlreadyExists, "there is another snapshot %s", wanted.Name)
	}
	return &csi.CreateSnapshotResponse{Snapshot: &csi.Snapshot{
		SnapshotId:     wanted.Name,
		SourceVolumeId: found.Source,
		SizeBytes:      found.Bytes,
		CreationTime:   timestamppb.New(found.Time),
		ReadyToUse:     !d.says("hold"),
	}}, nil
}

func (d *driver) DeleteSnapshot(
	_ context.Context, gone *csi.DeleteSnapshotRequest,
) (*csi.DeleteSnapshotResponse, error) {
	return &csi.DeleteSnapshotResponse{}, d.remove("snapshots", gone.SnapshotId)
}

func (d *driver) NodePublishVolume(
	_ context.Context, wanted *csi.NodePublishVolumeRequest,
) (*csi.NodePublishVolumeResponse, error) {
	if _, err := d.read("volumes", wanted.VolumeId); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(wanted.TargetPath, 0o750); err != nil {
		return nil, err
	}
	if mounted, err := isMount(wanted.TargetPath); err != nil || mounted {
		return &csi.NodePublishVolumeResponse{}, err
	}
	source := filepath.Join(d.place("volumes", wanted.VolumeId), "files")
	if err := unix.Mount(source, wanted.TargetPath, "", unix.MS_BIND, ""); err != nil {
		return nil, status.Errorf(codes.Internal, "mount: %v", err)
	}
	if wanted.Readonly {
		again := unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY
		if err := unix.Mount("", wanted.TargetPath, "", uintptr(again), ""); err != nil {
			return nil, status.Errorf(codes.Internal, "mount: %v", err)
		}
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func (d *driver) NodeUnpublishVolume(
	_ context.Context, gone *csi.NodeUnpublishVolumeRequest,
) (*csi.NodeUnpublishVolumeResponse, error) {
	mounted, err := isMount(gone.TargetPath)
	if err == nil && mounted {
		err = unix.Unmount(gone.TargetPath, 0)
	}
	if err == nil {
		err = os.Remove(gone.TargetPath) // alone: what is in it would be the volume's
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, status.Errorf(codes.Internal, "unmount: %v", err)
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

func isMount(path string) (bool, error) {
	found, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for _, line := range strings.Split(string(found), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && fields[4] == path {
			return true, nil
		}
	}
	return false, nil
}

func (d *driver) place(kind, name string) string {
	return filepath.Join(d.root, kind, name)
}

// trouble answers what the file `trouble` says, as long as it is there.
func (d *driver) trouble(name string) error {
	if !named.MatchString(name) {
		return status.Errorf(codes.InvalidArgument, "%q is no name", name)
	}
	if said, err := os.ReadFile(filepath.Join(d.root, "trouble")); err == nil {
		return status.Error(codes.Internal, strings.TrimSpace(string(said)))
	}
	return nil
}

func (d *driver) says(word string) bool {
	_, err := os.Stat(filepath.Join(d.root, word))
	return err == nil
}

func (d *driver) read(kind, name string) (facts, error) {
	var found facts
	if !named.MatchString(name) {
		return found, status.Errorf(codes.NotFound, "%s has no %q", kind, name)
	}
	text, err := os.ReadFile(filepath.Join(d.place(kind, name), "facts"))
	if errors.Is(err, fs.ErrNotExist) {
		return found, status.Errorf(codes.NotFound, "%s has no %s", kind, name)
	}
	if err == nil {
		err = json.Unmarshal(text, &found)
	}
	return found, err
}

// make lets a directory appear whole, by a rename; one that is there is left as it is.
func (d *driver) make(kind, name, from string, made facts) (facts, error) {
	if found, err := d.read(kind, name); status.Code(err) != codes.NotFound {
		return found, err
	}
	fresh, err := os.MkdirTemp(d.root, "new-")
	if err != nil {
		return made, err
	}
	defer os.RemoveAll(fresh)
	if err := os.Chmod(fresh, 0o755); err != nil {
		return made, err
	}
	files := filepath.Join(fresh, "files")
	if from == "" {
		err = os.Mkdir(files, 0o777)
	} else if said, failed := exec.Command("cp", "-a", filepath.Join(from, "files"), files).CombinedOutput(); failed != nil {
		err = status.Errorf(codes.Internal, "cp: %v: %s", failed, said)
	}
	if err != nil {
		return made, err
	}
	text, err := json.Marshal(made)
	if err == nil {
		err = os.WriteFile(filepath.Join(fresh, "facts"), text, 0o600)
	}
	if err == nil {
		err = os.Rename(fresh, d.place(kind, name))
	}
	if errors.Is(err, fs.ErrExist) { // asked for twice at once
		return d.read(kind, name)
	}
	return made, err
}

func (d *driver) remove(kind, name string) error {
	if !named.MatchString(name) {
		return nil // there never was one
	}
	return os.RemoveAll(d.place(kind, name))
}
