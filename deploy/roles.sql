-- Least privilege on PostgreSQL: the daemon's role `wbcd` owns the schema (it migrates); readers get a role that can only read.
-- Run as a superuser in the database of wbcd:  psql -d wbcd -f roles.sql
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd') THEN
    CREATE ROLE wbcd LOGIN;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd_reader') THEN
    CREATE ROLE wbcd_reader NOLOGIN;
  END IF;
END
$$;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO wbcd;
GRANT USAGE ON SCHEMA public TO wbcd_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO wbcd_reader;
ALTER DEFAULT PRIVILEGES FOR ROLE wbcd IN SCHEMA public GRANT SELECT ON TABLES TO wbcd_reader;
-- A person who reads the counts:  CREATE ROLE alice LOGIN PASSWORD '...' IN ROLE wbcd_reader;
