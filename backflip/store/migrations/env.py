"""Alembic's entry point; `backflip.store.migrate` hands it an open transaction."""

from alembic import context

from backflip.store.migrate import VERSION_TABLE
from backflip.store.tables import metadata


def run() -> None:
    """Run the wanted migrations inside the transaction that was handed over."""
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=metadata,
        version_table=VERSION_TABLE,
    )
    context.run_migrations()


run()
