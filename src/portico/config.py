"""Settings: read once, by ``cli``, from one TOML file and the command line, then handed on as values.

Each setting's name, default and help stand in the fields of :class:`Config` and :class:`ClusterConfig`;
docs/configuration.md repeats them, and a test compares the two.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from portico.errors import Invalid

SERVICE_ACCOUNT: Final = "portico"
"""The POSIX account of gateway and portal on a multi-user machine."""

SSH_ACCOUNT: Final = "portico-ssh"
"""The POSIX account that sshd's look-ups run as: it can ask the portal about keys, and nothing else."""

USER_GROUP: Final = "portico-users"
"""The POSIX group whose members the broker acts for. An existing account takes part once root adds it."""


def setting(default: Any, help: str) -> Any:
    """Return a dataclass field with a default and a help sentence."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class ClusterConfig:
    """A cluster besides ``local``: one table of the file. Its name is the table's."""

    kind: str = setting("slurm", "Its batch system; slurm is the only one so far.")
    title: str = setting("", "What people call it; by default its name.")
    conf: str = setting("", "slurm.conf on Portico's machine; by default where Slurm's commands look for it.")
    programs: str = setting("", "Folder with sbatch, squeue and the others; by default they are on the PATH.")
    interval_s: float = setting(2.0, "Time between two questions about its queue, however many people look.")
    operator: bool = setting(False, "Whether Portico's own account is an operator there, who may lengthen jobs.")
    requeue: bool = setting(
        False, "Whether its sessions begin again elsewhere when their node fails or is needed; otherwise they end."
    )
    partition: str = setting("", "Partition of sessions where a form names none; by default the cluster's own.")
    relay_host: str = setting("", "Name or address by which its nodes reach this machine; by default `host`.")
    python: str = setting("/usr/bin/python3", "Python on its nodes, 3.9 or later, for the relay.")
    apps_dir: str = setting("", "Folder with apps on its nodes (jupyter/bin/...); by default `install_dir`.")
    name: str = ""


@dataclass(frozen=True)
class Config:
    """Every setting, with its default. Sizes are bytes, times are seconds, unless the name says otherwise."""

    # server
    host: str = setting("localhost", "Name by which browsers reach Portico; another Host header is answered with 421.")
    bind: str = setting("", "Address to listen on; by default loopback for the host localhost, else every address.")
    port: int = setting(8000, "Port of the portal.")
    apps_port: int = setting(0, "Port of the apps' own origin; by default the portal's port + 1.")
    apps_domain: str = setting("", "Wildcard domain for apps, e.g. apps.example.org; then apps use the portal's port.")
    tls_certificate: str = setting("", "PEM file with the certificate chain; then Portico speaks HTTPS.")
    tls_key: str = setting("", "PEM file with the certificate's private key.")
    trusted_proxies: tuple[str, ...] = setting((), "Addresses whose X-Forwarded-For and -Proto headers are believed.")
    apps_url: str = setting("", "The apps' URL as browsers see it, where a front server changes it.")
    gateways: int = setting(1, "Gateway processes, side by side on the same ports.")
    public_url: str = setting("", "The portal's URL as browsers see it, where a front server changes it.")
    # sign-in
    sign_in_hours: float = setting(12.0, "A sign-in ends this long after it was made.")
    idle_hours: float = setting(4.0, "A sign-in ends when it was not used for this long.")
    password_min_length: int = setting(12, "Shortest password, in characters (NIST SP 800-63B asks for 8 or more).")
    # SSH
    ssh_port: int = setting(2222, "Port of Portico's own sshd; 0 for none.")
    ssh_host: str = setting("", "Name by which SSH clients reach it; by default `host`.")
    ssh_keys: bool = setting(True, "Whether plain public keys are good; otherwise certificates alone.")
    ssh_sign_in_hours: float = setting(
        0.0, "Plain keys are good only while their user has signed in in a browser within this time; 0: always."
    )
    ssh_forwarding: str = setting("yes", "TCP forwarding by SSH: yes, loopback (to the machine's own ports), or no.")
    ssh_banner: str = setting("", "File that sshd shows before anybody is let in: the terms of use, say.")
    ssh_certificate_hours: float = setting(8.0, "An SSH certificate (`portico ssh login`) is good for this long.")
    ssh_certificate_source: bool = setting(True, "Whether it is good only from the address that asked for it.")
    # accounts
    home_base: str = setting("/home", "Folder in which homes of new accounts are made.")
    uid_min: int = setting(20000, "Lowest uid of accounts that Portico makes or acts for.")
    uid_max: int = setting(59999, "Highest uid of accounts that Portico makes or acts for.")
    # the cluster `local`
    cores: float = setting(0.0, "Cores that sessions may hold at once; by default four times those of the machine.")
    memory_gb: float = setting(0.0, "Memory that sessions may hold at once, GB; by default the machine's less one.")
    max_sessions_per_user: int = setting(8, "Sessions that one user may have queued or running at once.")
    max_hours: float = setting(24.0, "Longest time of a session, extensions not counted, and of a batch job here.")
    extend_hours: float = setting(4.0, "What one press of Extend adds.")
    max_extended_hours: float = setting(72.0, "Longest time of a session with its extensions.")
    control_minutes: float = setting(30.0, "Who was let control another's desktop or terminal may do so for so long.")
    keep_ended_days: float = setting(7.0, "Ended sessions are shown, and their folders kept, for this long.")
    # other clusters
    clusters: tuple[ClusterConfig, ...] = setting((), "Other clusters: one table [clusters.NAME] for each.")
    relay_port: int = setting(0, "Port to which sessions on other clusters dial; by default the apps' port + 1.")
    # desktops
    clipboard: str = setting("both", "Which way a desktop's clipboard goes: both, in (to the desktop), out, or none.")
    clipboard_max_kb: int = setting(0, "Largest text of that clipboard, in thousands of bytes; by default any.")
    # mail
    smtp_server: str = setting("", "SMTP server for notices, host or host:port; by default no mail is sent.")
    smtp_user: str = setting("", "User at that server, where it asks for one.")
    smtp_password_file: str = setting("", "File with that user's password, which Portico's account can read.")
    mail_from: str = setting("", "Address that mail comes from; by default portico@ and the mail domain.")
    mail_domain: str = setting("", "What follows the @ of users' addresses; by default the host.")
    # catalog
    catalog_dirs: tuple[str, ...] = setting((), "Folders with more apps; a later one replaces an app of the same id.")
    image_dirs: tuple[str, ...] = setting((), "Folders of container images that apps may run in; none: no images.")
    job_template_dirs: tuple[str, ...] = setting((), "Folders with more scripts, NAME.sh, to begin a job with.")
    # set by the command line, not by the file
    state_dir: str = setting("", "Database and other things to keep; by default /var/lib/portico or below your home.")
    run_dir: str = setting("", "Sockets; by default /run/portico or below your own runtime folder.")
    install_dir: str = setting("", "What `portico up` installs; by default /opt/portico or below your home.")
    instance: str = setting("portico", "Name of this installation, where a machine has several.")
    multi_user: bool = setting(True, "Whether users have POSIX accounts of their own; so whenever root starts Portico.")

    @property
    def scheme(self) -> str:
        """What browsers speak to the portal."""
        return urlsplit(self.public_url).scheme if self.public_url else ("https" if self.tls_certificate else "http")

    @property
    def portal_origin(self) -> str:
        """The portal's origin (RFC 6454) as browsers see it, without a trailing slash."""
        if self.public_url:
            return self.public_url
        return _render_origin(self.scheme, self.host, self.port)

    def get_apps_origin(self, session_id: str) -> str:
        """Return the origin on which a session's http app is served, which is never the portal's."""
        if self.apps_domain:
            port = urlsplit(self.portal_origin).port or _DEFAULT_PORTS[self.scheme]
            return _render_origin(self.scheme, f"{session_id}.{self.apps_domain}", port)
        if self.apps_url:
            return self.apps_url
        host = urlsplit(self.portal_origin).hostname or self.host
        return _render_origin(self.scheme, host, self.apps_port)

    @property
    def clipboard_limits(self) -> dict[str, int]:
        """The largest text in bytes, ``in`` towards a desktop and ``out`` from it; what is missing has no limit."""
        ways = {"both": ("in", "out"), "none": ()}.get(self.clipboard, (self.clipboard,))
        most = {name: self.clipboard_max_kb * 1000 for name in ways if self.clipboard_max_kb}
        return most | {name: 0 for name in ("in", "out") if name not in ways}

    @property
    def socket_paths(self) -> dict[str, str]:
        """Where the processes listen, by name. See docs/protocol.md."""
        run = Path(self.run_dir)
        return {name: str(run / f"{name}.sock") for name in ("broker", "portal", "routes", "api", "relays", "ssh")}

    @property
    def ssh_dir(self) -> str:
        """The folder of what Portico's sshd is given, which others may read."""
        return str(Path(self.run_dir) / "ssh")

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return f"sqlite:///{self.state_dir}/portico.db"


_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


def _render_origin(scheme: str, host: str, port: int) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}" if port == _DEFAULT_PORTS[scheme] else f"{scheme}://{name}:{port}"


SSH_FORWARDING: Final = ("yes", "loopback", "no")
CLIPBOARD_WAYS: Final = ("both", "in", "out", "none")
CLIPBOARD_MOST_KB: Final = 20_000
"""What TigerVNC and noVNC take at all is about as much."""

GATEWAYS_MAX: Final = 64
CERTIFICATE_HOURS_MAX: Final = 168.0
"""A week: whoever needs more has a key."""
PLAIN_PATH: Final = re.compile(r"(?:/[A-Za-z0-9_][A-Za-z0-9._+@-]*)+")
"""Matched whole, a path in which no command line or list of mounts sees anything else, and without ``..``."""
CLUSTER_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")

COMMAND_LINE_ONLY: Final = frozenset({"state_dir", "run_dir", "install_dir", "instance", "multi_user"})


def load_config(path: Path | None, **overrides: Any) -> Config:
    """Return the settings of ``path`` (TOML, top-level keys) under ``overrides``, with every default filled in.

    Args:
        path: The file; None, or a path at which there is none, means defaults.
        overrides: Settings of the command line; None means not given.

    Raises:
        Invalid: The file can't be read or is not TOML, a name is unknown, or a value has the wrong type or range.

    """
    try:
        text = path.read_text() if path and path.exists() else ""
        values = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise Invalid(f"The configuration {path} can't be read.", why=str(error)) from error
    known = {f.name: f for f in fields(Config) if f.name not in COMMAND_LINE_ONLY}
    if "clusters" in values:
        values["clusters"] = _parse_clusters(values["clusters"])
    for name, value in values.items():
        if name not in known:
            raise Invalid(
                f"The configuration {path} has a setting that does not exist: {name!r}.",
                hint="docs/configuration.md lists them all.",
                field=name,
            )
        if name != "clusters":
            values[name] = _convert(name, value, known[name].default)
    given = {name: value for name, value in overrides.items() if value is not None}
    return _fill_in(Config(**(values | given)))


def _parse_clusters(tables: Any) -> tuple[ClusterConfig, ...]:
    """Return the clusters of the tables ``[clusters.NAME]``.

    Raises:
        Invalid: They are none.
    """
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise Invalid("The setting clusters is made of tables.", hint="For example [clusters.big]", field="clusters")
    known = {f.name: f.default for f in fields(ClusterConfig) if f.metadata}
    found = []
    for name, table in tables.items():
        if not CLUSTER_NAME.match(name) or name == "local":
            raise Invalid(
                f"A cluster can't have the name {name[:40]!r}.",
                why="local is this machine's own." if name == "local" else "",
                hint="Small letters, digits and dashes, beginning with a letter; 32 at most.",
                field="clusters",
            )
        if unknown := sorted(table.keys() - known.keys()):
            raise Invalid(
                f"[clusters.{name}] has a setting that does not exist: {unknown[0]!r}.",
                hint="docs/configuration.md lists them all.",
                field=unknown[0],
            )
        values = {key: _convert(key, value, known[key]) for key, value in table.items()}
        cluster = ClusterConfig(**values, name=name)
        if cluster.kind != "slurm":
            raise Invalid(f"[clusters.{name}] is of an unknown kind: {cluster.kind!r}.", hint="It is slurm.")
        for key in ("conf", "programs", "python", "apps_dir"):
            if (path := getattr(cluster, key)) and (not path.startswith("/") or not path.isprintable()):
                raise Invalid(f"[clusters.{name}]: {key} must be an absolute path.", field=key)
        if not cluster.interval_s:
            raise Invalid(f"[clusters.{name}]: interval_s must be above 0.", field="interval_s")
        found.append(replace(cluster, title=cluster.title or name))
    return tuple(found)


def _convert(name: str, value: Any, default: Any) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise Invalid(f"The setting {name} must be a list of strings.", field=name)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        raise Invalid(f"The setting {name} must be a {type(default).__name__}, not {value!r}.", field=name)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value < 0:
        raise Invalid(f"The setting {name} must not be negative.", field=name)
    return value


def _fill_in(config: Config) -> Config:
    multi_user = os.geteuid() == 0
    home = Path.home()
    base: dict[str, Any] = {
        "state_dir": "/var/lib/portico" if multi_user else str(home / ".local/share/portico"),
        "run_dir": "/run/portico" if multi_user else _find_own_run_dir(home),
        "install_dir": "/opt/portico" if multi_user else str(home / ".local/share/portico"),
        "bind": "127.0.0.1" if config.host in LOOPBACK_HOSTS else "",
    }
    wanted: dict[str, Any] = {name: value for name, value in base.items() if not getattr(config, name)}
    filled = replace(config, **wanted, apps_port=config.apps_port or config.port + 1, multi_user=multi_user)
    filled = replace(filled, relay_port=config.relay_port or filled.apps_port + 1)
    if bool(filled.tls_certificate) != bool(filled.tls_key):
        raise Invalid("A certificate and its key go together: set both tls_certificate and tls_key, or neither.")
    if filled.clipboard not in CLIPBOARD_WAYS:
        raise Invalid(f"The setting clipboard must be one of {', '.join(CLIPBOARD_WAYS)}.", field="clipboard")
    if filled.clipboard_max_kb > CLIPBOARD_MOST_KB:
        raise Invalid(f"The setting clipboard_max_kb must be {CLIPBOARD_MOST_KB} at most.", field="clipboard_max_kb")
    if filled.ssh_forwarding not in SSH_FORWARDING:
        raise Invalid(f"The setting ssh_forwarding must be one of {', '.join(SSH_FORWARDING)}.", field="ssh_forwarding")
    if filled.ssh_port and filled.ssh_port in (filled.port, filled.apps_port, filled.relay_port):
        raise Invalid("ssh_port must be a port of its own.", field="ssh_port")
    if not 1 <= filled.gateways <= GATEWAYS_MAX:
        raise Invalid(f"The setting gateways must be from 1 to {GATEWAYS_MAX}.", field="gateways")
    if not 0 < filled.ssh_certificate_hours <= CERTIFICATE_HOURS_MAX:
        raise Invalid(
            f"The setting ssh_certificate_hours must be above 0, and {CERTIFICATE_HOURS_MAX:g} at most.",
            field="ssh_certificate_hours",
        )
    filled = replace(
        filled,
        public_url=_parse_origin("public_url", filled.public_url),
        apps_url=_parse_origin("apps_url", filled.apps_url),
    )
    for proxy in filled.trusted_proxies:
        _check_network(proxy)
    if filled.relay_port in (filled.port, filled.apps_port):
        raise Invalid("relay_port must be a port of its own.", field="relay_port")
    if not filled.apps_domain and filled.apps_port == filled.port:
        raise Invalid("Apps need an origin of their own: apps_port must not be the portal's port.", field="apps_port")
    if filled.apps_url:
        if filled.apps_domain:
            raise Invalid("Set either apps_url or apps_domain, not both.", field="apps_url")
        if urlsplit(filled.apps_url).scheme != filled.scheme:
            raise Invalid(f"The setting apps_url must begin with {filled.scheme}://, as the portal.", field="apps_url")
        if filled.get_apps_origin("") == filled.portal_origin:
            raise Invalid("Apps need an origin of their own: apps_url must not be the portal's.", field="apps_url")
    for folder in filled.image_dirs:
        if not PLAIN_PATH.fullmatch(folder):
            raise Invalid(
                f"The setting image_dirs must be absolute paths of letters, digits and . _ + @ -, not {folder[:80]!r}.",
                field="image_dirs",
            )
    if len(filled.run_dir) > 60:  # sun_path has 108 bytes, and below this stand users/<uid>/<session>/app.sock
        raise Invalid(f"The run folder's path is too long: {filled.run_dir}", hint="60 characters at most.")
    return filled


def _parse_origin(name: str, url: str) -> str:
    """Return a URL as the origin that browsers send for it (RFC 6454): small letters, no default port, no slash."""
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise Invalid(f"The setting {name} is not a URL.", why=str(error), field=name) from None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        raise Invalid(f"The setting {name} must begin with http:// or https:// and have a host.", field=name)
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise Invalid(
            f"The setting {name} must be an origin: nothing after host and port.",
            why="Portico can't be served below a path of another site.",
            hint=f'For example {name} = "https://hpc.example.org"',
            field=name,
        )
    return _render_origin(parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme])


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise Invalid(
            "The setting trusted_proxies has what is neither an address nor a network.",
            why=str(error),
            hint='For example trusted_proxies = ["127.0.0.1", "192.0.2.0/28"]',
            field="trusted_proxies",
        ) from None


LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def _find_own_run_dir(home: Path) -> str:
    # Never below /tmp, where somebody else could have made the folder before us.
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == os.geteuid():
        return os.path.join(runtime, "portico")
    return str(home / ".local/share/portico/run")
