//! No tenant can see or touch another tenant's rows: the database itself refuses.

mod catalogue;
mod connections;
mod group_commit;
mod raw_sql;
mod routes;
mod rows;
