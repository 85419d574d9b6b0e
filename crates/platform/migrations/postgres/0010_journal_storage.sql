-- Rows of the journal are read once and deleted: compressing them takes more time than it saves.
ALTER TABLE journal ALTER COLUMN records SET STORAGE EXTERNAL;

-- No statement asks for a request by its id: an invoice's line is walked back to its requests through ledger_entry.
DROP INDEX usage_event_by_request;
