"""A platform of its own that collects through localstripe, a stateful stand-in for Stripe: a month that is over becomes an invoice, the
card is charged, the event that comes back changes nothing, a card that is declined leaves the invoice open. The database is made older
by hand, since a month is not waited for."""

import datetime
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import journeys

BINARY = os.environ["BITNET_BINARY"]
HOOK_SECRET = "whsec_journey"
KEY = "sk_test_12345"


def free_port():
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
        probe.bind(("::", 0))
        return probe.getsockname()[1]


def call(url, key=None, body=None, form=None):
    """Sends a request; the status and the answer, JSON if it is that."""
    data, headers = None, {}
    if body is not None:
        data, headers["content-type"] = json.dumps(body).encode(), "application/json"
    if form is not None:
        data, headers["content-type"] = urllib.parse.urlencode(form).encode(), "application/x-www-form-urlencoded"
    if key:
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return status, text


def until(what, check, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (found := check()) is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen in {seconds} s")


class World:
    """localstripe and a server, in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.children = []
        port = free_port()
        self.stripe = f"http://localhost:{port}"
        command = [sys.executable, "-m", "localstripe", "--port", str(port), "--from-scratch"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.children.append(subprocess.Popen(command, cwd=folder, **quiet))
        until("localstripe", lambda: self.answers(port))

    def answers(self, port):
        try:
            socket.create_connection(("localhost", port), timeout=1).close()
            return True
        except OSError:
            return None

    def run(self, *arguments):
        done = subprocess.run([BINARY, *arguments], cwd=self.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout.strip()

    def serve(self):
        environment = {**os.environ, "BITNET_STRIPE_KEY": KEY, "BITNET_STRIPE_HOOK_SECRET": HOOK_SECRET}
        command = [BINARY, "serve", "--platform", "--stripe", self.stripe, "--listen", "127.0.0.1:0", "--log", "error"]
        server = subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True, env=environment)
        self.children.append(server)
        for line in server.stderr:
            if match := re.search(r"http://(\S+)", line):
                self.url = f"http://{match[1]}"
                break
        hook = {"url": f"{self.url}/webhooks/stripe", "secret": HOOK_SECRET}
        assert call(f"{self.stripe}/_config/webhooks/own", body=hook)[0] == 200

    def account(self, name):
        account = self.run("accounts", "create", name, "--plan", "developer")
        self.run("billing", "profile", account, "--collection", "automatic", "--email", "ann@example.com")
        return account, self.run("keys", "create", account, "--name", "admin", "--admin")

    def grow_older(self, accounts):
        """As if these had been made in the middle of the month before the last one: two months are over since, whatever day it is."""
        now = datetime.datetime.now(datetime.timezone.utc)
        months = now.year * 12 + now.month - 1 - 2
        made = datetime.datetime(months // 12, months % 12 + 1, 15, tzinfo=datetime.timezone.utc)
        older = (now - made) // datetime.timedelta(microseconds=1)
        with sqlite3.connect(os.path.join(self.folder, "bitnet.db"), timeout=30) as database:
            for account in accounts:
                database.execute("UPDATE account SET created_at = created_at - ? WHERE id = ?", (older, account))
                database.execute("UPDATE account_plan SET valid_from = valid_from - ? WHERE account_id = ?", (older, account))

    def card(self, number):
        form = {"type": "card", "card[number]": number, "card[exp_month]": "12", "card[exp_year]": "2050", "card[cvc]": "123"}
        status, made = call(f"{self.stripe}/v1/payment_methods", KEY, form=form)
        assert status == 200, made
        return made["id"]

    def invoices(self, key):
        status, answer = call(f"{self.url}/v1/organization/invoices", key)
        assert status == 200, answer
        return answer["data"]

    def intents(self):
        status, answer = call(f"{self.stripe}/v1/payment_intents?limit=100", KEY)
        assert status == 200, answer
        return answer["data"]

    def end(self):
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait(timeout=60)


def invoice_is_issued_charged_and_paid_once():
    (account, key), (poor, poor_key) = world.account("Ann"), world.account("Bob")
    world.grow_older([account, poor])
    world.paying = key
    world.run("invoices", "finalize")
    assert world.run("invoices", "finalize") == "", "again, it changes nothing"
    world.serve()
    issued = world.invoices(key)
    assert len(issued) == 2 and all(invoice["status"] == "open" for invoice in issued), issued
    status, answer = call(f"{world.url}/v1/organization/billing/payment_setup", key, body={})
    assert status == 200 and answer["client_secret"].startswith("seti_"), answer
    method = {"payment_method": world.card("4242424242424242")}
    status, answer = call(f"{world.url}/v1/organization/billing/payment_method", key, body=method)
    assert status == 200, answer
    for invoice in issued:
        status, answer = call(f"{world.url}/v1/organization/invoices/{invoice['id']}/pay", key, body={})
        # The server collects by itself, too.
        assert status == 200 and answer.get("status") in ("paid", "processing"), answer
    are_paid = lambda: all(invoice["status"] == "paid" and invoice["outstanding_micros"] == 0 for invoice in world.invoices(key)) or None
    until("payment", are_paid)
    status, page = call(f"{world.url}/v1/organization/invoices/{issued[0]['id']}.pdf", key)
    assert status == 200 and page.startswith(b"%PDF"), page[:20]
    status, _ = call(f"{world.url}/v1/organization/invoices/{issued[0]['id']}", poor_key)
    assert status == 404, "nobody sees another's"

    # Declined when it is charged, not when it is attached.
    method = {"payment_method": world.card("4000000000000341")}
    status, answer = call(f"{world.url}/v1/organization/billing/payment_method", poor_key, body=method)
    assert status == 200, answer
    first = world.invoices(poor_key)[0]
    pay = lambda: call(f"{world.url}/v1/organization/invoices/{first['id']}/pay", poor_key, body={})[1]
    answer = until("a refusal", lambda: next((said for said in [pay()] if said.get("status") == "failed"), None))
    assert "card_declined" in answer["reason"], answer
    assert world.invoices(poor_key)[0]["status"] == "open"

    # localstripe sends its events a second later; they say what is known.
    heard = until("an event of each payment", lambda: events_heard(2))
    assert heard >= 2
    succeeded = [intent for intent in world.intents() if intent["status"] == "succeeded"]
    assert len(succeeded) == 2 and sum(intent["amount"] for intent in succeeded) == sum(i["total_micros"] // 10_000 for i in issued)
    assert len(world.invoices(key)) == 2


def events_heard(n):
    with sqlite3.connect(os.path.join(world.folder, "bitnet.db"), timeout=30) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM provider_event").fetchone()
    return count if count >= n else None


def refund_goes_back_to_the_card_with_a_credit_note():
    invoice = next(invoice for invoice in world.invoices(world.paying) if invoice["status"] == "paid" and invoice["kind"] == "invoice")
    environment = {**os.environ, "BITNET_STRIPE_KEY": KEY, "BITNET_STRIPE_URL": world.stripe}
    command = [BINARY, "invoices", "refund", invoice["id"], "12.50", "--reason", "a day was lost"]
    done = subprocess.run(command, cwd=world.folder, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and "succeeded" in done.stdout, done
    status, listed = call(f"{world.stripe}/v1/refunds?limit=100", KEY)
    assert status == 200 and [refund["amount"] for refund in listed["data"]] == [1250], listed
    after = {paper["id"]: paper for paper in world.invoices(world.paying)}
    refunded = after[invoice["id"]]
    assert (refunded["status"], refunded["outstanding_micros"], refunded["credited_micros"]) == ("paid", 0, 12_500_000), refunded
    assert any(paper["corrects"] == invoice["id"] and paper["total_micros"] == -12_500_000 for paper in after.values()), after


def event_that_is_forged_is_refused():
    status, answer = call(f"{world.url}/webhooks/stripe", body={"id": "evt_1", "type": "payment_intent.succeeded"})
    assert status == 403, answer


def books_are_balanced():
    world.run("db", "reconcile")


with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    world = World(folder)
    try:
        steps = [invoice_is_issued_charged_and_paid_once, refund_goes_back_to_the_card_with_a_credit_note]
        journeys.run([*steps, event_that_is_forged_is_refused, books_are_balanced])
    finally:
        world.end()
