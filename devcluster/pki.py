"""The cluster's own keys and certificates, made by openssl on its first start; nothing of them is in the repository."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from devcluster.places import API_PORT, API_SERVICE, NODE, NODE_ADDRESS, Places
from devcluster.trouble import ClusterError, say

DAYS = "3650"
METRICS_NAME = "metrics-server.kube-system.svc"
SERVER_NAMES = (
    f"IP:127.0.0.1,IP:{API_SERVICE},IP:{NODE_ADDRESS},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,"
    "DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
)
AUTHORITIES = {"ca": "sandboxd-devcluster", "front-proxy-ca": "sandboxd-devcluster-front-proxy"}
"""The second one vouches for the API server alone, where it passes on whose request it forwards: what the first one
signed must never be taken for that."""
FRONT_PROXY = "front-proxy-client"
CERTIFICATES = {
    "apiserver": ("/CN=kube-apiserver", SERVER_NAMES),
    FRONT_PROXY: (f"/CN={FRONT_PROXY}", ""),
    "metrics-server": ("/CN=metrics-server", f"DNS:{METRICS_NAME}"),
    "admin": ("/O=system:masters/CN=admin", ""),
    "controller-manager": ("/CN=system:kube-controller-manager", ""),
    "scheduler": ("/CN=system:kube-scheduler", ""),
    "kubelet": (f"/O=system:nodes/CN=system:node:{NODE}", f"IP:127.0.0.1,IP:{NODE_ADDRESS},DNS:{NODE}"),
}
USERS = ("admin", "controller-manager", "scheduler", "kubelet")


def ensure_pki(places: Places) -> bool:
    """Make the keys unless they are there and whole; tells whether they were made.

    They appear at once by a rename, so that a killed start leaves either all or none.
    """
    made = not _is_whole(places.pki)
    if made:
        fresh = places.pki.with_name(f"pki.{os.getpid()}.new")
        for left in places.etc.glob("pki.*.new"):
            shutil.rmtree(left)
        fresh.mkdir(parents=True, mode=0o700)
        _make(fresh)
        if places.pki.exists():
            say("the keys of the cluster were damaged or run out; making new ones")
            shutil.rmtree(places.pki)
        fresh.rename(places.pki)
    for user in USERS:
        _write_kubeconfig(places, user)
    return made


def _is_whole(pki: Path) -> bool:
    try:
        names = [*(f"{name}.crt" for name in AUTHORITIES), "sa.key", "sa.pub"]
        names += [f"{name}.key" for name in (*AUTHORITIES, *CERTIFICATES)]
        if not all((pki / name).read_bytes() for name in names):
            return False
    except OSError:
        return False
    for name in CERTIFICATES:
        verify = ["openssl", "verify", "-CAfile", str(pki / f"{_authority_of(name)}.crt"), str(pki / f"{name}.crt")]
        alive = ["openssl", "x509", "-noout", "-checkend", "86400", "-in", str(pki / f"{name}.crt")]
        if any(subprocess.run(one, capture_output=True, check=False).returncode for one in (verify, alive)):
            return False
    return True


def _make(pki: Path) -> None:
    before = os.umask(0o077)
    try:
        for name, common in AUTHORITIES.items():
            given = ["-keyout", f"{name}.key", "-out", f"{name}.crt", "-days", DAYS, "-subj", f"/CN={common}"]
            _openssl(pki, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *given)
        _openssl(pki, "genrsa", "-out", "sa.key", "2048")
        _openssl(pki, "rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        for name, (subject, names) in CERTIFICATES.items():
            keys = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject]
            _openssl(pki, "req", "-newkey", "rsa:2048", "-nodes", *keys)
            rules = "basicConstraints=CA:FALSE\nextendedKeyUsage=clientAuth,serverAuth\n"
            (pki / f"{name}.ext").write_text(rules + (f"subjectAltName={names}\n" if names else ""))
            authority = _authority_of(name)
            signing = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-days", DAYS]
            _openssl(
                pki, "x509", "-req", "-in", f"{name}.csr", *signing, "-extfile", f"{name}.ext", "-out", f"{name}.crt"
            )
    finally:
        os.umask(before)


def _authority_of(certificate: str) -> str:
    return "front-proxy-ca" if certificate == FRONT_PROXY else "ca"


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"openssl {arguments[0]} failed:\n{done.stderr.decode(errors='replace')}")


def _write_kubeconfig(places: Places, user: str) -> None:
    keys = {"client-certificate": str(places.pki / f"{user}.crt"), "client-key": str(places.pki / f"{user}.key")}
    text = kubeconfig(user, keys, server=f"https://127.0.0.1:{API_PORT}", authority=places.pki / "ca.crt")
    write(places.etc / f"{user}.kubeconfig", text)


def kubeconfig(user: str, credentials: Mapping[str, str], *, server: str, authority: Path) -> str:
    """A kubeconfig with one user, whose credentials are as kubeconfigs name them, and one cluster."""
    cluster = {"server": server, "certificate-authority": str(authority)}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "devcluster", "cluster": cluster}],
        "users": [{"name": user, "user": dict(credentials)}],
        "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": user}}],
        "current-context": "devcluster",
    }
    return json.dumps(content, indent=1)


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all, for root alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.touch(mode=0o600)
    fresh.write_text(text)
    fresh.replace(path)
