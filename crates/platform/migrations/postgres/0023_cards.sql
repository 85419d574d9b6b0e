-- What its holder knows a card by. All of them are empty without one, and for cards that were stored before.
ALTER TABLE payment_customer ADD COLUMN card_brand TEXT NOT NULL DEFAULT '';
ALTER TABLE payment_customer ADD COLUMN card_last_digits TEXT NOT NULL DEFAULT '';
-- Month and year, as it is printed on it.
ALTER TABLE payment_customer ADD COLUMN card_expires TEXT NOT NULL DEFAULT '';
