"""The ground floor: the on-disk format, backends, the log, and the manifests with their queries.

Nouns: a *store* has *members*, its backends (store.py, backends.py); the *log* holds its records, whose fold is its
*state* (log.py); records are *armoured* (armour.py); a *manifest file* is a Parquet file that a record names
(schema.py, tables.py, replicas.py); the *catalog* queries them (catalog.py, plan.py, objects.py, inspect.py). FORMAT.md
is the specification.

DuckDB and pyarrow are imported here only, and not by the modules that workers use (format, config, columns, backends,
armour, store, errors). What reads the log does without NumPy, too.
"""
