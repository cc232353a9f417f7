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
