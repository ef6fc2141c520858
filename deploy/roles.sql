-- Least privilege on PostgreSQL. Written by `wbcd db roles`; run it as a superuser in the database of wbcd:
--   wbcd db roles | psql -d wbcd
-- then give the two that log in their passwords (\password wbcd_owner, \password wbcd_daemon) and, as the owner,
--   wbcd db upgrade --db postgresql://wbcd_owner@localhost/wbcd
-- which makes the tables and grants the rest. Running either again changes nothing.

DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd_owner') THEN CREATE ROLE wbcd_owner LOGIN; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd_daemon') THEN CREATE ROLE wbcd_daemon LOGIN; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd_reader') THEN CREATE ROLE wbcd_reader NOLOGIN; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd_reviewer') THEN CREATE ROLE wbcd_reviewer NOLOGIN; END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'wbcd_auditor') THEN CREATE ROLE wbcd_auditor NOLOGIN; END IF;
END
$$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO wbcd_owner;
GRANT USAGE ON SCHEMA public TO wbcd_daemon, wbcd_reader, wbcd_reviewer, wbcd_auditor;

-- Only when the tables are there already; `wbcd db upgrade` does the same after every migration.
DO $$
BEGIN
  IF to_regclass('public.audit_head') IS NOT NULL THEN
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM wbcd_daemon;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM wbcd_daemon;
    GRANT SELECT ON differential_count, rejection_count, cell_rejection_count, backlog, cell_label, current_run, current_count, current_cell_count, run_result, cell_result, cell_picture, known_model, labelled_sample, journal, known_class, sample, acquisition, run, cell, prediction, event, review, sample_label, recipe, model, source_file, audit_head, alembic_version TO wbcd_daemon;
    GRANT INSERT ON sample, recipe, model, acquisition, run, cell, prediction, event, source_file TO wbcd_daemon;
    GRANT USAGE ON SEQUENCE sample_id_seq, acquisition_id_seq, run_id_seq, cell_id_seq, prediction_id_seq, event_id_seq TO wbcd_daemon;
    GRANT UPDATE ON acquisition, source_file, run TO wbcd_daemon;
    GRANT DELETE ON source_file, acquisition, run, cell, prediction TO wbcd_daemon;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM wbcd_reader;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM wbcd_reader;
    GRANT SELECT ON differential_count, rejection_count, cell_rejection_count, backlog, cell_label, current_run, current_count, current_cell_count, run_result, cell_result, cell_picture, known_model, labelled_sample, journal, known_class, alembic_version TO wbcd_reader;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM wbcd_reviewer;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM wbcd_reviewer;
    GRANT SELECT ON differential_count, rejection_count, cell_rejection_count, backlog, cell_label, current_run, current_count, current_cell_count, run_result, cell_result, cell_picture, known_model, labelled_sample, journal, known_class, alembic_version TO wbcd_reviewer;
    GRANT SELECT (id, name) ON sample TO wbcd_reviewer;
    GRANT INSERT ON review, sample_label TO wbcd_reviewer;
    GRANT USAGE ON SEQUENCE review_id_seq, sample_label_id_seq TO wbcd_reviewer;
    REVOKE ALL ON ALL TABLES IN SCHEMA public FROM wbcd_auditor;
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM wbcd_auditor;
    GRANT SELECT ON differential_count, rejection_count, cell_rejection_count, backlog, cell_label, current_run, current_count, current_cell_count, run_result, cell_result, cell_picture, known_model, labelled_sample, journal, known_class, sample, acquisition, run, cell, prediction, event, review, sample_label, recipe, model, source_file, audit_head, alembic_version, sample_id_seq, acquisition_id_seq, run_id_seq, cell_id_seq, prediction_id_seq, event_id_seq, review_id_seq, sample_label_id_seq TO wbcd_auditor;
  END IF;
END
$$;
