"""Alembic runs this file for every command; `mlops_ray.migrations.upgrade` hands in the connection."""

from alembic import context

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"], version_table=attributes["version_table"], transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
