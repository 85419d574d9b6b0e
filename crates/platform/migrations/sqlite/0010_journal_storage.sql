-- No statement asks for a request by its id: an invoice's line is walked back to its requests through ledger_entry.
DROP INDEX usage_event_by_request;
