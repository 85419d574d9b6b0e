// Paying in a browser, with localstripe in Stripe's place: its script stands for Stripe's field, on the page whose policy lets it in. A
// card that is declined, another one, an invoice that is paid by a click, money that an operator sends back. BITNET_SCREENSHOTS names a
// folder for pictures. The database is made older by hand, since a month is not waited for.
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { chromium } from 'playwright-core';
import { run } from './journeys.mjs';

const { BITNET_BINARY: binary, BITNET_PYTHON: python, BITNET_CHROMIUM: executablePath, BITNET_SCREENSHOTS: screenshots } = process.env;
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const folder = mkdtempSync(join(tmpdir(), 'bitnet-payment-'));
const children = [];
const key = 'sk_test_12345', hook = 'whsec_journey';

const port = await new Promise(resolve => {
  const probe = createServer().listen(0, () => { const { port } = probe.address(); probe.close(() => resolve(port)); });
});
const stripe = `http://localhost:${port}`;
children.push(spawn(python, ['-m', 'localstripe', '--port', String(port), '--from-scratch'], { cwd: folder, stdio: 'ignore' }));
for (;;) {
  if (await fetch(`${stripe}/js.stripe.com/v3/`).then(reply => reply.ok, () => false)) break;
  await new Promise(resolve => setTimeout(resolve, 100));
}

const env = { ...process.env, BITNET_STRIPE_KEY: key, BITNET_STRIPE_HOOK_SECRET: hook, BITNET_STRIPE_PUBLISHABLE_KEY: 'pk_test_12345' };
const server = spawn(binary, ['serve', '--platform', '--stripe', stripe, '--listen', '127.0.0.1:0', '--log', 'error'], { cwd: folder, env, stdio: ['ignore', 'ignore', 'pipe'] });
children.push(server);
let url = '', first = '';
for await (const line of createInterface({ input: server.stderr })) {
  url ||= line.match(/ on (http:\S+)/)?.[1] ?? '';
  first ||= line.match(/open (http\S+\/sign-up\?first=[0-9a-f]+)/)?.[1] ?? '';
  if (url && first) break;
}
server.stderr.resume();

const path = executablePath.includes('/') ? executablePath : `/usr/bin/${executablePath}`;
const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--headless'];
const browser = await chromium.launch({ executablePath: path, args });
const page = await (await browser.newContext({ viewport: { width: 1200, height: 860 }, colorScheme: 'light' })).newPage();
page.setDefaultTimeout(20_000);
const faults = [];
page.on('pageerror', error => faults.push(`${page.url()}: ${error.message}`));
page.on('console', message => message.type() === 'error' && !message.text().includes('status of 402') && faults.push(`${page.url()}: ${message.text()}`));

const text = selector => page.locator(selector).first().innerText();
const bitnet = (...words) => execFileSync(binary, words, { cwd: folder, env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
let account = '', invoice = '';

// Light and dark, on a desk and in a hand. The fields inside of Stripe's own are not ours.
async function look(name) {
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    await page.evaluate(axe);
    const found = await page.evaluate(() => window.axe.run({ exclude: [['#card-field']] }, { resultTypes: ['violations'] }));
    const bad = found.violations.filter(violation => ['serious', 'critical'].includes(violation.impact));
    assert.deepEqual(bad.map(violation => `${name}: ${violation.id}: ${violation.nodes.map(node => node.target)}`), []);
    if (screenshots) await page.screenshot({ path: join(screenshots, `${name}-${colorScheme}.png`), fullPage: true });
  }
  await page.emulateMedia({ colorScheme: 'light' });
  await page.setViewportSize({ width: 390, height: 800 });
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth) <= 0, `${name} sticks out on a phone`);
  if (screenshots) await page.screenshot({ path: join(screenshots, `${name}-phone.png`), fullPage: true });
  await page.setViewportSize({ width: 1200, height: 860 });
}

async function giveCard(number) {
  const field = name => page.locator(`#card-field [placeholder=${name}]`);
  for (const [name, value] of [['number', number], ['exp_month', '12'], ['exp_year', '50'], ['cvc', '123'], ['postal_code', '12345']]) await field(name).fill(value);
  await page.click('#card-form button');
  await page.waitForURL(/said=card/);
}

const journeys = {
  async cardIsTypedIntoStripesField() {
    await page.goto(first);
    for (const [name, value] of Object.entries({ name: 'Ann Archer', email: 'ann@example.com', password: 'four words are long' })) await page.fill(`main [name=${name}]`, value);
    await page.click('main form button.button');
    await page.waitForURL(/\/accounts\/acct_[0-9a-f]+\/start$/);
    account = page.url().match(/acct_[0-9a-f]+/)[0];
    await page.goto(`${url}/accounts/${account}/payment`);
    assert.match(await text('main'), /There is no card/);
    await page.locator('#card-field [placeholder=number]').waitFor();
    await look('payment-none');
    await giveCard('4000000000000341');
    assert.match(await text('.held'), /Visa\s+••••[\s\S]*0341/);
  },
  async declinedCardIsSaidAndReplaced() {
    bitnet('accounts', 'plan', account, 'developer');
    bitnet('billing', 'profile', account, '--collection', 'automatic', '--email', 'ann@example.com');
    const older = `import sqlite3,sys
with sqlite3.connect('bitnet.db', timeout=30) as d:
    for t, c, i in [('account','created_at','id'), ('account_plan','valid_from','account_id')]:
        d.execute(f'UPDATE {t} SET {c} = {c} - ? WHERE {i} = ?', (40 * 86400 * 10**6, sys.argv[1]))`;
    execFileSync(python, ['-c', older, account], { cwd: folder });
    bitnet('invoices', 'finalize');
    await page.goto(`${url}/accounts/${account}/payment`);
    await page.click('button:has-text("Pay now") >> nth=0');
    await page.locator('.note.bad').first().waitFor();
    assert.match(await text('.note.bad'), /card_declined/);
    await look('payment-declined');
    await giveCard('4242424242424242');
    assert.match(await text('.held'), /Visa\s+••••[\s\S]*4242[\s\S]*12\/2050/);
  },
  async invoiceIsPaidByAClick() {
    // The server charges open invoices by itself, too: whichever is first.
    await page.goto(`${url}/accounts/${account}/payment`);
    while (await page.locator('button:has-text("Pay now")').count()) {
      await page.click('button:has-text("Pay now") >> nth=0');
      await page.waitForLoadState();
      await page.goto(`${url}/accounts/${account}/payment`);
    }
    assert.match(await text('main'), /all is paid/);
    await look('payment-paid');
  },
  async operatorSendsMoneyBack() {
    await page.goto(`${url}/operator/accounts/${account}`);
    invoice = await page.locator('main a:has-text("Invoice")').first().getAttribute('href');
    await page.goto(url + invoice);
    await page.fill('[action$=refund] [name=amount]', '12.50');
    await page.fill('[action$=refund] [name=reason]', 'a day was lost');
    await page.click('[action$=refund] button');
    await page.waitForURL(/said=refunded/);
    assert.match(await text('main'), /a day was lost\s+succeeded\s+\$12\.50/);
    await look('console-invoice');
  },
  async nothingBrokeOnTheWay() {
    assert.deepEqual(faults, []);
  },
};

const failed = await run(journeys, 'payment in Chromium');
await browser.close();
for (const child of children.reverse()) { child.kill('SIGTERM'); await new Promise(resolve => child.exitCode === null ? child.once('exit', resolve) : resolve()); }
rmSync(folder, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
