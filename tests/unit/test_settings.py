from pathlib import Path

import pytest

from sandboxd.settings import Settings, SettingsError, load_settings, redact, unknown_variables


def test_the_defaults_listen_on_loopback_alone() -> None:
    settings = load_settings()

    assert settings.grpc_listen.startswith("127.0.0.1:")
    assert settings.gateway_listen.startswith("127.0.0.1:")


def test_all_problems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_GRPC_LISTEN", "0.0.0.0:50051")
    monkeypatch.setenv("SANDBOXD_WEB_LISTEN", "nowhere")
    monkeypatch.setenv("SANDBOXD_MAX_STREAMS", "none")
    monkeypatch.setenv("SANDBOXD_TLS_KEY_FILE", "/nowhere/key.pem")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    lines = str(caught.value).splitlines()
    assert lines[0] == "The settings cannot be used:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "SANDBOXD_WEB_LISTEN",
        "SANDBOXD_MAX_STREAMS",
        "SANDBOXD_TLS_KEY_FILE",
        "SANDBOXD_TLS_CERTIFICATE_FILE and SANDBOXD_TLS_KEY_FILE belong together",
        "SANDBOXD_GRPC_LISTEN",
    ]


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.168.0.1:1", "[::]:1", "example.org:1"])
def test_an_address_that_others_reach_needs_tls(address: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.touch()
    key.touch()

    with pytest.raises(SettingsError, match="can be reached from other machines"):
        load_settings(grpc_listen=address)
    settings = load_settings(grpc_listen=address, tls_certificate_file=certificate, tls_key_file=key)

    assert settings.grpc_listen == address


@pytest.mark.parametrize("address", ["127.0.0.1:0", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_loopback_needs_no_tls(address: str) -> None:
    assert load_settings(grpc_listen=address).grpc_listen == address


def test_secrets_come_from_files_too_and_are_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "url").write_text("postgresql://u:canary@h/d\n")
    monkeypatch.setenv("SANDBOXD_DATABASE_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("GEMINI_API_KEY", "canary-key")

    settings = load_settings()

    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:canary@h/d"
    assert settings.gemini_api_key is not None
    assert settings.gemini_api_key.get_secret_value() == "canary-key"
    assert "canary" not in f"{redact(settings)} {settings!r}"
    assert redact(settings)["database_url"] == "(set)"


def test_a_secrets_file_that_is_not_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOXD_DATABASE_URL_FILE", "/nowhere/url")

    with pytest.raises(SettingsError, match="/nowhere/url cannot be read"):
        load_settings()


def test_a_file_is_outranked_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sandboxd.toml"
    file.write_text('log_level = "debug"\nreplica = "from-file"\n')
    monkeypatch.setenv("SANDBOXD_CONFIG", str(file))
    monkeypatch.setenv("SANDBOXD_REPLICA", "from-environment")

    settings = load_settings()

    assert (settings.log_level, settings.replica) == ("debug", "from-environment")


def test_an_unknown_name_in_the_file_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sandboxd.toml"
    file.write_text("grcp_listen = 1\n")
    monkeypatch.setenv("SANDBOXD_CONFIG", str(file))

    with pytest.raises(SettingsError, match="SANDBOXD_GRCP_LISTEN"):
        load_settings()


def test_a_config_file_that_is_absent_or_broken_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "sandboxd.toml"
    monkeypatch.setenv("SANDBOXD_CONFIG", str(file))
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings()

    file.write_text("this is not TOML")
    with pytest.raises(SettingsError, match="cannot be used"):
        load_settings()


def test_misspelt_variables_are_found() -> None:
    environment = {"SANDBOXD_GRCP_LISTEN": "", "SANDBOXD_GRPC_LISTEN": "", "SANDBOXD_CONFIG": "", "PATH": ""}

    assert unknown_variables(environment) == ["SANDBOXD_GRCP_LISTEN"]


@pytest.mark.parametrize("url", ["ftp://x", "http://user@x", "http://x?y=1", "x"])
def test_an_upstream_that_is_not_a_plain_url_is_a_problem(url: str) -> None:
    with pytest.raises(SettingsError, match="SANDBOXD_GEMINI_URL"):
        load_settings(gemini_url=url)


def test_replicas_must_be_told_an_address_that_they_can_use() -> None:
    with pytest.raises(SettingsError, match="SANDBOXD_PEER_ADDRESS: other replicas cannot use 0.0.0.0:0"):
        load_settings(peer_listen="0.0.0.0:0")
    with pytest.raises(SettingsError, match="SANDBOXD_PEER_ADDRESS: must be host or host:port"):
        load_settings(peer_address="http://here")

    assert load_settings(peer_listen="0.0.0.0:0", peer_address="10.0.0.5").peer_address == "10.0.0.5"


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


# ------------------------------------------------------------------------------------------------ listening


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    files = {"tls_certificate_file": tmp_path / "certificate.pem", "tls_key_file": tmp_path / "key.pem"}
    for file in files.values():
        file.touch()
    return files


@pytest.mark.parametrize("name", ["grpc_platform_listen", "web_listen", "gateway_listen", "gateway_web_listen"])
def test_every_address_that_others_reach_needs_tls(name: str) -> None:
    with pytest.raises(SettingsError, match=f"SANDBOXD_{name.upper()}: 0.0.0.0:1 can be reached from other machines"):
        load_settings(**{name: "0.0.0.0:1"})


def test_the_operators_address_is_served_by_the_certificate_of_its_role(pair: dict[str, Path]) -> None:
    assert load_settings(web_listen="0.0.0.0:1", **pair).web_listen == "0.0.0.0:1"
    with pytest.raises(SettingsError, match="SANDBOXD_GATEWAY_WEB_LISTEN"):
        load_settings(gateway_web_listen="0.0.0.0:1", **pair)


def test_certificates_of_the_platform_need_an_authority_and_tls(pair: dict[str, Path], tmp_path: Path) -> None:
    authority = tmp_path / "authority.pem"
    given = {"grpc_platform_listen": "0.0.0.0:1", "platform_certificate_names": "a.test, spiffe://b"}
    with pytest.raises(SettingsError) as caught:
        load_settings(**given, **pair)
    assert str(caught.value).count("it needs SANDBOXD_TLS_CLIENT_AUTHORITY_FILE") == 2
    with pytest.raises(SettingsError, match=r"authority\.pem does not exist"):
        load_settings(**given, **pair, tls_client_authority_file=authority)
    authority.touch()
    with pytest.raises(SettingsError, match="client certificates need TLS"):
        load_settings(tls_client_authority_file=authority)

    settings = load_settings(**given, **pair, tls_client_authority_file=authority)

    assert settings.platform_names == {"a.test", "spiffe://b"}


@pytest.mark.parametrize("names", ["*.acme.test", "a\x00b", "x" * 300])
def test_names_of_certificates_are_whole_names(names: str) -> None:
    with pytest.raises(SettingsError, match="SANDBOXD_PLATFORM_CERTIFICATE_NAMES"):
        load_settings(platform_certificate_names=names)


@pytest.mark.parametrize(
    "url",
    ["https://issuer.test/keys", "https://issuer.test:8443/keys?policy=x", "http://127.0.0.1:1/k", "http://[::1]/k"],
)
def test_keys_come_by_https_or_from_this_machine(url: str) -> None:
    assert load_settings(jwt_jwks_url=url).jwt_jwks_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.test/keys",
        "http://10.0.0.1/k",
        "ftp://127.0.0.1/k",
        "file:///etc/keys",
        "https://u:p@issuer.test/k",
        "https://issuer.test/k#f",
        "https://issuer.test/a b",
        "https://issuer.test:port/k",
        "https:///k",
        "k",
    ],
)
def test_keys_come_from_nowhere_else(url: str) -> None:
    with pytest.raises(SettingsError, match="SANDBOXD_JWT_JWKS_URL: must be an https URL"):
        load_settings(jwt_jwks_url=url)


def test_keys_come_from_one_place(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(
            jwt_jwks_url="https://issuer.test/k",
            jwt_keys_file=tmp_path / "k",
            jwt_jwks_authority_file=tmp_path / "none.pem",
        )
    assert "exclude each other" in str(caught.value)
    assert "none.pem does not exist" in str(caught.value)
    with pytest.raises(SettingsError, match="is not set"):
        load_settings(jwt_jwks_authority_file=tmp_path / "none.pem")


# ------------------------------------------------------------------------------------------------ images that are kept


def test_what_belongs_to_a_registry_needs_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("canary\n")
    monkeypatch.setenv("SANDBOXD_IMAGES_REGISTRY_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setenv("SANDBOXD_IMAGES_REGISTRY_AUTHORITY_FILE", "/nowhere/ca.pem")

    with pytest.raises(SettingsError) as caught:
        load_settings()

    told = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert told == [
        "SANDBOXD_IMAGES_REGISTRY_AUTHORITY_FILE: it is for SANDBOXD_IMAGES_REGISTRY, which is not set",
        "SANDBOXD_IMAGES_REGISTRY_PASSWORD: it is for SANDBOXD_IMAGES_REGISTRY, which is not set",
        "SANDBOXD_IMAGES_REGISTRY_USER and SANDBOXD_IMAGES_REGISTRY_PASSWORD belong together: set both or none",
        "SANDBOXD_IMAGES_REGISTRY_AUTHORITY_FILE: the file /nowhere/ca.pem does not exist",
    ]


def test_signatures_need_a_key_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"SIGNATURES: no key is trusted; set SANDBOXD_IMAGES_SIGNING_KEY_FILE or"):
        load_settings(images_registry="registry.test:5000", images_signatures="require")
    with pytest.raises(SettingsError, match=r"SIGNING_KEY_FILE: it is for SANDBOXD_IMAGES_REGISTRY, which is not set"):
        load_settings(images_signing_key_file=tmp_path / "key.pem")
    with pytest.raises(SettingsError, match=r"SIGNING_TRUST_DIR: .* does not exist"):
        load_settings(images_registry="registry.test:5000", images_signing_trust_dir=tmp_path / "none")
    load_settings(images_registry="registry.test:5000", images_signatures="require", images_signing_trust_dir=tmp_path)


@pytest.mark.parametrize("plain", [True, "on"])
def test_a_registrys_password_goes_nowhere_in_the_clear(plain: object) -> None:
    given = {"images_registry_user": "u", "images_registry_password": "canary", "images_registry_plain": plain}

    with pytest.raises(SettingsError, match="PLAIN: the password would go to registry.test:5000 without TLS"):
        load_settings(images_registry="registry.test:5000", **given)
    settings = load_settings(images_registry="registry.test:5000", images_registry_address="127.0.0.1:5000", **given)

    assert redact(settings)["images_registry_password"] == "(set)"
    assert "canary" not in f"{settings!r}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images_registry", "https://registry.test"),
        ("images_registry", "registry.test/project"),
        ("images_registry_address", "user@registry.test"),
        ("images_repository_prefix", "/sandboxes"),
        ("images_repository_prefix", "Sandboxes"),
        ("images_secrets", "ignore"),
        ("images_compression", "none"),
        ("images_architecture", "riscv64"),
        ("images_spool_bytes", 0),
        ("images_workers", 0),
        ("images_install_seconds", -1),
    ],
)
def test_what_images_are_kept_by_is_checked(name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"SANDBOXD_{name.upper()}"):
        load_settings(**{"images_registry": "registry.test", name: value})


def test_each_tier_has_a_limit_of_its_own() -> None:
    limits = load_settings(images_layer_bytes_premium=7, images_layer_entries=5).image_limits

    assert {tier.value: (limit.raw_bytes, limit.entries) for tier, limit in limits.items()} == {
        "basic": (5_000_000_000, 5),
        "standard": (10_000_000_000, 5),
        "premium": (7, 5),
    }
