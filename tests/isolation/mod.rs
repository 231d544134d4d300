//! No tenant can see or touch another tenant's rows: the database itself refuses.
