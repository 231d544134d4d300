DROP INDEX contacts_hidden;
DROP TABLE lid_lookups, gap_fills;
