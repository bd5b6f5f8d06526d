-- The words of code and name as `search_terms.py` finds them: Postgres' own parser splits words at combining marks and
-- knows neither plurals nor case beyond one character for one. The column `search` stays for an edge of the previous
-- version that still runs. Rows of an older version of the rules, or of another name, are indexed when an edge starts.
ALTER TABLE product
    ADD COLUMN words         tsvector NOT NULL DEFAULT '',
    ADD COLUMN words_version integer NOT NULL DEFAULT 0,
    ADD COLUMN words_of      text;

CREATE INDEX product_words ON product USING gin (words) WITH (fastupdate = off);

-- The words that a misspelled one may be corrected to. Two words that are one edit apart have a key in common.
CREATE TABLE vocabulary (
    word text COLLATE "C" PRIMARY KEY,
    keys text[] NOT NULL
);

CREATE INDEX vocabulary_keys ON vocabulary USING gin (keys) WITH (fastupdate = off);
