"""portico.config: one file, clear refusals, and origins that never meet."""

from pathlib import Path

import pytest

from portico.config import load_config
from portico.errors import Invalid


def load(tmp_path: Path, text: str, **overrides: object):  # type: ignore[no-untyped-def]
    path = tmp_path / "portico.toml"
    path.write_text(text)
    return load_config(path, **overrides)


def test_defaults_need_no_file() -> None:
    config = load_config(None)
    assert config.portal_origin == "http://localhost:8000"
    assert config.get_apps_origin("k1") == "http://localhost:8001"
    assert config.bind == "127.0.0.1"


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "port = 9000\nhost = 'hpc.example.org'", port=9100)
    assert (config.port, config.apps_port, config.host, config.bind) == (9100, 9101, "hpc.example.org", "")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("port = ", "can't be read"),
        ("prot = 1", "does not exist: 'prot'"),
        ("port = '8000'", "port must be a int"),
        ("port = true", "port must be a int"),
        ("max_hours = -1", "must not be negative"),
        ("tls_key = '/k'", "both"),
        ("apps_port = 8000", "origin of their own"),
        ("public_url = 'javascript:1'", "must begin with"),
        ("public_url = 'https:///x'", "must begin with"),
        ("public_url = 'https://hpc.example.org/portico'", "must be an origin"),
        ("public_url = 'https://me@hpc.example.org'", "must be an origin"),
        ("public_url = 'https://hpc.example.org:many'", "is not a URL"),
        ("trusted_proxies = ['localhost']", "neither an address nor a network"),
        ("trusted_proxies = ['10.0.0.0/99']", "neither an address nor a network"),
        ("gateways = 0", "from 1 to 64"),
        ("ssh_certificate_hours = 0", "above 0, and 168 at most"),
        ("ssh_certificate_hours = 169", "above 0, and 168 at most"),
        ("gateways = 65", "from 1 to 64"),
        ("apps_url = 'https://apps.example.org'", "must begin with http://"),
        ("apps_url = 'http://localhost:8000'", "origin of their own"),
        ("apps_url = 'http://a.example.org'\napps_domain = 'b.example.org'", "not both"),
        ("trusted_proxies = '10.0.0.1'", "list of strings"),
        ("clusters = 'big'", "made of tables"),
        ("[clusters.local]", "local is this machine's own"),
        ("[clusters.Big]", "can't have the name"),
        ("[clusters.big]\npartitions = 'x'", "does not exist: 'partitions'"),
        ("[clusters.big]\nkind = 'cron'", "unknown kind"),
        ("[clusters.big]\nconf = 'slurm.conf'", "absolute path"),
        ("[clusters.big]\ninterval_s = 0", "above 0"),
        ("[clusters.big]\noperator = 'yes'", "must be a bool"),
        ("relay_port = 8000", "a port of its own"),
        ("run_dir = '/elsewhere'", "does not exist"),
    ],
)
def test_a_wrong_file_is_one_clear_sentence(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(tmp_path, text)
    assert says in caught.value.message + caught.value.why


@pytest.mark.parametrize(
    ("text", "portal", "apps"),
    [
        ("host = 'h'\nport = 80", "http://h", "http://h:81"),
        ("host = '::1'", "http://[::1]:8000", "http://[::1]:8001"),
        ("host = 'h'\nport = 443\ntls_certificate = 'c'\ntls_key = 'k'", "https://h", "https://h:444"),
        (
            "host = 'h'\nport = 443\ntls_certificate = 'c'\ntls_key = 'k'\napps_domain = 'apps.h'",
            "https://h",
            "https://k1.apps.h",
        ),
        ("host = 'h'\nport = 8443\napps_domain = 'apps.h'", "http://h:8443", "http://k1.apps.h:8443"),
        ("public_url = 'https://front.example.org/'", "https://front.example.org", "https://front.example.org:8001"),
        ("public_url = 'https://Front.example.org:443'", "https://front.example.org", "https://front.example.org:8001"),
        ("public_url = 'https://[2001:DB8::1]:8443'", "https://[2001:db8::1]:8443", "https://[2001:db8::1]:8001"),
        (
            "public_url = 'https://front.example.org'\napps_url = 'https://front.example.org:8443/'",
            "https://front.example.org",
            "https://front.example.org:8443",
        ),
    ],
)
def test_apps_never_share_the_portals_origin(tmp_path: Path, text: str, portal: str, apps: str) -> None:
    config = load(tmp_path, text)
    assert (config.portal_origin, config.get_apps_origin("k1")) == (portal, apps)
    assert portal != apps


def test_a_long_run_folder_is_refused_because_sockets_have_short_names() -> None:
    with pytest.raises(Invalid, match="too long"):
        load_config(None, run_dir="/tmp/" + "x" * 80)


def test_clusters_are_tables(tmp_path: Path) -> None:
    config = load(tmp_path, "port = 9000\n[clusters.big]\ntitle = 'The big one'\n[clusters.small]\ninterval_s = 5")
    assert [(one.name, one.title, one.kind, one.interval_s) for one in config.clusters] == [
        ("big", "The big one", "slurm", 2.0),
        ("small", "small", "slurm", 5.0),
    ]
    assert config.relay_port == 9002
