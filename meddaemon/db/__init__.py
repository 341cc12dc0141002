"""The only package that speaks SQL: tables, engine, dialect differences, and queries that return domain values."""
