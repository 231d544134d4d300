DROP TABLE media_fetches;
ALTER TABLE media
    DROP COLUMN thumbnail_size,
    DROP COLUMN height,
    DROP COLUMN width;
