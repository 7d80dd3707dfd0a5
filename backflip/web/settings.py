"""Where the pages are served, and to whom. Loopback alone, unless a proxy that ends TLS stands in front."""

from dataclasses import dataclass
from ipaddress import ip_address

from backflip.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the pages are served. Raises: ConfigError for what would let strangers in or send secrets in the clear."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """0 takes a free one."""
    behind_proxy: bool = False
    """A proxy ends TLS in front and says so in X-Forwarded-Proto; whatever came by plain HTTP is refused."""
    names: tuple[str, ...] = ()
    """Names under which browsers reach the server, beside those of this machine itself."""
    lease_s: float = 600.0
    """How long a pair is kept for the rater it was handed to."""
    longest_body: int = 1_000_000
    """Bytes of the longest request."""

    def __post_init__(self) -> None:
        """Refuse what is not safe."""
        if not is_loopback(self.host) and not self.behind_proxy:
            raise ConfigError(
                f"The pages would be open to the network on {self.host} by plain HTTP.\n"
                "Whoever listens there could read cookies and votes, so such requests are refused.\n"
                "Put a proxy that ends TLS in front and add --behind-proxy --name NAME: see docs/serving.md."
            )
        if self.behind_proxy and not self.names:
            raise ConfigError(
                "--behind-proxy needs the name under which browsers reach the pages.\n"
                "Requests under any other name are refused, and links are made with it.\n"
                "Add it with --name, as in --name rate.example.org."
            )

    @property
    def hosts(self) -> frozenset[str]:
        """What a Host header may say, without the port."""
        own = {self.host.lower()} if is_loopback(self.host) else set()
        return frozenset({"127.0.0.1", "localhost", "::1"} | own | {name.lower() for name in self.names})

    def link(self, path: str, port: int | None = None) -> str:
        """The address of a page."""
        if self.behind_proxy:
            return f"https://{self.names[0]}{path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port or self.port}{path}"


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host.lower() == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
