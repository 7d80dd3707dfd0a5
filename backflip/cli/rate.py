"""`backflip rate`: serve the pages on which people rate."""

from pathlib import Path
from typing import Annotated

import typer

from backflip.cli.terminal import AsJson, RunFolder, print_json, run_folder

Host = Annotated[str, typer.Option("--host", help="Address to listen on; any but this machine's needs --behind-proxy.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
BehindProxy = Annotated[
    bool, typer.Option("--behind-proxy", help="A proxy in front ends TLS; whatever came by plain HTTP is refused.")
]
Names = Annotated[
    list[str] | None, typer.Option("--name", help="Name under which browsers reach the pages; may be given again.")
]


def rate(
    dir: RunFolder = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    behind_proxy: BehindProxy = False,
    name: Names = None,
    owner_link: Annotated[bool, typer.Option("--owner-link", help="Print another one-time link for an owner.")] = False,
    as_json: AsJson = False,
) -> None:
    """Serve a run's pages, where people rate, until Ctrl-C; prints the owner's one-time link."""
    from backflip.web.app import serve
    from backflip.web.settings import Settings

    root = run_folder(dir)
    settings = Settings(host=host, port=port, behind_proxy=behind_proxy, names=tuple(name or ()))

    def tell(address: str, link: str | None) -> None:
        if as_json:
            print_json({"run": str(root), "address": address, "owner_link": link})
        else:
            typer.echo("\n".join(_lines(root, address, link)))

    serve(root, settings, fresh_link=owner_link, tell=tell)


def _lines(root: Path, address: str, link: str | None) -> list[str]:
    if link is None:
        return [f"{root} is served on {address}", f"for another owner's link: backflip rate {root} --owner-link"]
    return [
        f"{root} is served on {address}",
        f"open this once, to be let in as its owner: {link}",
        "invite people on the owner's page; Ctrl-C stops the server",
    ]
