-- Runs once, on an empty volume. The same role and database as deploy/services.sh makes.
CREATE ROLE switchboard LOGIN CREATEROLE CREATEDB NOSUPERUSER NOBYPASSRLS PASSWORD 'switchboard';
CREATE DATABASE switchboard OWNER switchboard ENCODING 'UTF8' TEMPLATE template0 LOCALE 'C.UTF-8';
