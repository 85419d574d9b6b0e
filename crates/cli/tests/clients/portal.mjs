// What somebody does who has just started `bitnet serve --platform`: signs up, gets a key, sends a first request, finds it in usage and
// in the draft invoice, invites somebody. Every page is looked at by axe-core, in light and dark. BITNET_SCREENSHOTS names a folder for
// pictures.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { run } from './journeys.mjs';

const { BITNET_URL: url, BITNET_CHROMIUM: executablePath, BITNET_SCREENSHOTS: screenshots, BITNET_PYTHON: python, BITNET_MAILS: mails, BITNET_KIND: kind } = process.env;
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const folder = mkdtempSync(join(tmpdir(), 'bitnet-portal-'));
const path = executablePath.includes('/') ? executablePath : `/usr/bin/${executablePath}`;
const args = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--headless'];
const browser = await chromium.launch({ executablePath: path, args });
const faults = [], sizes = new Map();
const expectedStatuses = new Set();

async function open(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 860 }, colorScheme: 'light', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.on('pageerror', error => faults.push(`${page.url()}: ${error.message}`));
  page.on('console', message => {
    const isExpected = [...expectedStatuses].some(status => message.text().includes(`status of ${status}`));
    if (message.type() === 'error' && !isExpected) faults.push(`${page.url()}: ${message.text()}`);
  });
  return page;
}

const page = await open();
const picture = async (name, full = true) => screenshots && kind === 'SQLite' && page.screenshot({ path: join(screenshots, `portal-${name}.png`), fullPage: full });
const text = selector => page.locator(selector).first().innerText();
const password = 'four words are long';
let account = '', key = '';

// The link of the last mail to an address, as the terminal of the server shows it.
async function link(email, part) {
  for (;;) {
    const all = readFileSync(mails, 'utf8').split('mail to ').filter(mail => mail.startsWith(email)).reverse();
    const found = all.map(mail => mail.match(new RegExp(`http\\S+/${part}/[0-9a-f]+`))?.[0]).find(Boolean);
    if (found) return found;
    await page.waitForTimeout(100);
  }
}

async function fill(on, fields) {
  for (const [name, value] of Object.entries(fields)) await on.fill(`main [name=${name}]`, value);
  await on.click('main form button.button');
}

const signUp = (on, name, email) => on.goto(`${url}/sign-up`).then(() => fill(on, { name, email, password }));

async function check(on, name) {
  await on.evaluate(axe);
  const found = await on.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  const bad = found.violations.filter(violation => ['serious', 'critical'].includes(violation.impact));
  assert.deepEqual(bad.map(violation => `${name}: ${violation.id}: ${violation.nodes.map(node => node.target + ' ' + node.failureSummary).join(' | ')}`), []);
}

// A page's own bytes with all that it loads, uncompressed.
async function weigh(where) {
  const bytes = [];
  const count = response => bytes.push(response.body().then(body => body.length).catch(() => 0));
  page.on('response', count);
  await page.goto(url + where, { waitUntil: 'networkidle' });
  page.off('response', count);
  sizes.set(where, (await Promise.all(bytes)).reduce((sum, size) => sum + size, 0));
}

const journeys = {
  async strangerFindsPricesAndSignsUp() {
    await page.goto(url);
    await picture('landing');
    assert.match(await text('h1'), /−1, 0 and \+1/);
    await page.click('nav >> text=Pricing');
    assert.match(await page.locator('.plans').innerText(), /\$499/);
    await picture('pricing');
    await page.click('text=Sign up');
    assert.equal(await page.locator('.note').count(), 0, 'an address alone makes nobody the operator');
    await page.goto(readFileSync(mails, 'utf8').match(/open (http\S+\/sign-up\?first=[0-9a-f]+)/)[1]);
    assert.match(await text('.note'), /operator/);
    await picture('sign-up');
    await fill(page, { name: 'Ann Archer', email: 'ann@example.com', password });
    await page.waitForURL(/\/accounts\/acct_[0-9a-f]+\/start$/);
    account = page.url().match(/acct_[0-9a-f]+/)[0];
  },
  async firstRequestIsNoticed() {
    await picture('start');
    await page.click('text=Make my first key');
    key = (await text('#key')).trim();
    assert.match(key, /^sk-bitnet-[0-9a-f]{64}$/);
    await picture('start-key');
    assert.match(await text('#seen'), /Waiting/);
    const said = execFileSync('bash', ['-c', await text('#curl')], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
    assert.ok(JSON.parse(said).usage.completion_tokens > 0, said);
    await page.locator('#seen.arrived').waitFor();
    await picture('start-done');
  },
  async otherSnippetsWork() {
    const shown = async id => { await page.locator(`#${id}`).evaluate(pre => { pre.closest('details').open = true; }); return text(`#${id}`); };
    writeFileSync(join(folder, 'first.mjs'), await shown('javascript'));
    // A program that fails ends this one; what it prints is drawn by the model, and may be a word or nothing.
    assert.match(execFileSync('node', [join(folder, 'first.mjs')], { encoding: 'utf8' }), /\n$/);
    writeFileSync(join(folder, 'first.py'), await shown('python'));
    assert.match(execFileSync(python, [join(folder, 'first.py')], { encoding: 'utf8' }), /\n$/);
    assert.match(await shown('rust'), /ureq::post\("http/);
  },
  async requestsAreInUsageAndInTheDraftInvoice() {
    await page.click('aside >> text=Usage');
    await page.locator('[data-chart=tokens] canvas').waitFor();
    const models = '#by-model table';
    for (let tries = 0; tries < 50 && !(await text(models)).includes('tales'); tries += 1) await page.reload({ waitUntil: 'networkidle' });
    assert.match(await text(models), /tales\s+3/);
    await picture('usage');
    await page.click('aside >> text=Invoices');
    assert.match(await text('main table'), /3 operations that the plan includes/);
    await picture('invoice');
    await page.click('text=To print');
    assert.match(await text('h1'), /invoice for/i);
    await page.goBack();
    await page.click('aside >> text=Overview');
    await picture('overview');
  },
  async playgroundWritesAsItComes() {
    await page.click('aside >> text=Playground');
    await page.fill('#limit', '24');
    await page.fill('#text', 'Tell me a story about a fox.');
    await page.keyboard.press('Enter');
    await page.locator('#send:not([hidden])').waitFor();
    assert.match(await page.locator('.turn.assistant').last().innerText(), /tokens/);
    await picture('playground');
    await page.fill('#text', '<img src=x onerror=alert(1)>');
    await page.keyboard.press('Enter');
    await page.locator('#send:not([hidden])').waitFor();
    assert.equal(await page.locator('#log img').count(), 0);
  },
  async keyIsRotatedAndRevoked() {
    const ask = bearer => fetch(`${url}/v1/models`, { headers: { authorization: `Bearer ${bearer}` } }).then(reply => reply.status);
    await page.click('aside >> text=API keys');
    await page.click('button:has-text("Rotate")');
    const newer = (await text('#key')).trim();
    assert.equal(await ask(newer), 200);
    await page.click('text=I have it');
    await picture('keys');
    await page.click('button:has-text("Revoke") >> nth=-1');
    assert.match(await text('.note.good'), /revoked/);
    const statuses = [await ask(newer), await ask(key)].sort();
    assert.deepEqual(statuses, [200, 401], 'one of them is revoked at once');
    // A page that is loaded anew sends nothing twice.
    await page.reload();
    assert.match(await text('main table'), /revoked/);
  },
  async operatorGivesAPlanAndSomebodyIsInvited() {
    await page.click('text=Console');
    await page.click('text=Check now');
    assert.match(await text('.note.good'), /They do/);
    await picture('console');
    await page.click('aside >> text=Accounts');
    await page.click('main table a');
    await page.selectOption('[name=plan]', 'team');
    await page.click('button:has-text("Change")');
    await page.fill('[name=amount]', '25');
    await page.fill('[name=reason]', 'pilot');
    await page.click('button:has-text("Give")');
    await picture('console-account');
    await page.goto(`${url}/accounts/${account}/members`);
    await page.fill('[name=email]', 'bob@example.com');
    await page.click('button:has-text("Invite")');
    const bob = await open();
    await signUp(bob, 'Bob Baker', 'bob@example.com');
    await bob.waitForURL(/check-mail/);
    await bob.goto(await link('bob@example.com', 'confirm'));
    await bob.click('main button');
    await bob.goto(await link('bob@example.com', 'invitations'));
    await bob.click('text=Accept');
    assert.match(await bob.locator('.note.good').innerText(), /member/);
    assert.equal(await bob.locator('aside >> text=Audit log').count(), 0, 'a developer has none');
    expectedStatuses.add(403).add(404);
    assert.equal((await bob.goto(`${url}/accounts/${account}/audit`)).status(), 403);
    await bob.context().close();
    await page.reload();
    await picture('members');
    await page.click('aside >> text=Audit log');
    assert.match(await text('main table'), /invitation.accepted/);
    await picture('audit');
  },
  async withoutScriptsItIsAllThere() {
    const plain = await open({ javaScriptEnabled: false });
    await plain.goto(`${url}/log-in`);
    await fill(plain, { email: 'ann@example.com', password });
    await plain.goto(`${url}/accounts/${account}/keys`);
    await plain.fill('main [name=name]', 'without a script');
    await plain.click('main button:has-text("Make it")');
    assert.match(await plain.locator('#key').innerText(), /^sk-bitnet-/);
    await plain.goto(`${url}/accounts/${account}/start/seen?page=whole`);
    assert.match(await plain.locator('#seen').innerText(), /is here/);
    assert.ok(!(await plain.locator('#charts').isVisible()), 'charts need one, tables do not');
    await plain.context().close();
  },
  async keyboardAloneSignsIn() {
    const hands = await open();
    await hands.goto(`${url}/log-in`);
    await hands.keyboard.press('Tab');
    assert.equal(await hands.evaluate(() => document.activeElement.className), 'skip');
    await hands.focus('[name=email]');
    await hands.keyboard.type('ann@example.com');
    await hands.keyboard.press('Tab');
    await hands.keyboard.type(password);
    await hands.keyboard.press('Enter');
    await hands.waitForURL(/accounts/);
    await hands.context().close();
  },
  async passkeyOpensWithoutAPassword() {
    // Passkeys belong to names: this machine's is localhost.
    const here = url.replace('127.0.0.1', 'localhost');
    const device = await open();
    const cdp = await device.context().newCDPSession(device);
    await cdp.send('WebAuthn.enable');
    const options = { protocol: 'ctap2', transport: 'internal', hasResidentKey: true, hasUserVerification: true, isUserVerified: true, automaticPresenceSimulation: true };
    const { authenticatorId } = await cdp.send('WebAuthn.addVirtualAuthenticator', { options });
    await device.goto(`${here}/log-in`);
    await fill(device, { email: 'ann@example.com', password });
    await device.goto(`${here}/profile`);
    await device.fill('[data-passkey] [name=name]', 'laptop');
    await device.fill('[data-passkey] [name=password]', password);
    await device.click('text=Add a passkey');
    await device.waitForURL(/said=passkey/);
    assert.match(await device.locator('.note.good').innerText(), /passkey is added/);
    if (screenshots && kind === 'SQLite') await device.screenshot({ path: join(screenshots, 'portal-passkeys.png'), fullPage: true });
    await device.click('text=Sign out');
    await device.click('text=Sign in with a passkey');
    await device.waitForURL(/\/accounts/);
    const { credentials } = await cdp.send('WebAuthn.getCredentials', { authenticatorId });
    assert.deepEqual([credentials.length, credentials[0].rpId, credentials[0].signCount > 1], [1, 'localhost', true]);
    // A copy whose counter stands where it stood is noticed.
    await device.click('text=Sign out');
    await cdp.send('WebAuthn.removeCredential', { authenticatorId, credentialId: credentials[0].credentialId });
    await cdp.send('WebAuthn.addCredential', { authenticatorId, credential: { ...credentials[0], signCount: 0 } });
    expectedStatuses.add(401);
    await device.click('text=Sign in with a passkey');
    await device.locator('.note.bad:not([hidden])').first().waitFor();
    assert.match(await device.locator('.note.bad').first().innerText(), /opens nothing here/);
    await page.goto(`${url}/profile`);
    assert.match(await page.locator('[data-note]').innerText(), /Passkeys belong to http:\/\/localhost/);
    await page.click('[aria-label="Remove laptop"]');
    assert.match(await text('.note.good'), /passkey is removed/);
    await device.context().close();
  },
  async everyPageIsLightReadableAndAccessible() {
    // The same pages, whatever the database.
    if (kind !== 'SQLite') return;
    const own = ['', '/start', '/playground', '/models', '/usage', '/keys', '/limits', '/members', '/invoices', '/payment', '/plan', '/webhooks', '/audit', '/settings'];
    const open = ['/', '/pricing', '/guides', '/guides/quickstart', '/guides/keys', '/guides/streaming', '/guides/errors', '/guides/usage', '/guides/security', '/reference', '/reference/post_v1_chat_completions', '/status'];
    const rest = ['/accounts?all=1', '/profile', '/profile/second-factor', '/operator', '/operator/accounts', '/operator/people', '/operator/audit', `/operator/accounts/${account}`];
    for (const where of [...open, ...own.map(part => `/accounts/${account}${part}`), ...rest]) {
      await weigh(where);
      for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        await check(page, `${where} ${colorScheme}`);
      }
      await page.setViewportSize({ width: 390, height: 800 });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(wide <= 0, `${where} sticks out by ${wide} pixels on a phone`);
      await page.setViewportSize({ width: 1200, height: 860 });
    }
    const heavy = [...sizes].filter(([, size]) => size > 150_000);
    assert.deepEqual(heavy, []);
    console.log(`heaviest page: ${[...sizes].sort((a, b) => b[1] - a[1])[0].join(' ')} bytes of ${sizes.size} pages`);
    const stranger = await (await browser.newContext()).newPage();
    for (const where of ['/sign-up', '/log-in', '/forgot', '/check-mail', '/confirm/0']) {
      await stranger.goto(url + where);
      for (const colorScheme of ['light', 'dark']) {
        await stranger.emulateMedia({ colorScheme });
        await check(stranger, `${where} ${colorScheme}`);
      }
    }
    await stranger.context().close();
  },
  async picturesInTheDarkAndOnAPhone() {
    if (!screenshots || kind !== 'SQLite') return;
    const shown = { landing: '/', pricing: '/pricing', overview: `/accounts/${account}`, start: `/accounts/${account}/start`, usage: `/accounts/${account}/usage`, keys: `/accounts/${account}/keys`, guide: '/guides/errors', reference: '/reference', operation: '/reference/post_v1_chat_completions', status: '/status', profile: '/profile', factor: '/profile/second-factor', playground: `/accounts/${account}/playground`, plan: `/accounts/${account}/plan`, limits: `/accounts/${account}/limits`, console: '/operator' };
    for (const [name, where] of Object.entries(shown)) {
      await page.emulateMedia({ colorScheme: 'dark' });
      await page.goto(url + where, { waitUntil: 'networkidle' });
      await picture(`${name}-dark`);
      await page.emulateMedia({ colorScheme: 'light' });
      await page.setViewportSize({ width: 390, height: 800 });
      await page.goto(url + where, { waitUntil: 'networkidle' });
      await picture(`${name}-phone`);
      await page.setViewportSize({ width: 1200, height: 860 });
    }
    await page.goto(`${url}/guides/errors`); await picture('guide');
    await page.goto(`${url}/reference/post_v1_chat_completions`); await picture('operation');
    await page.goto(`${url}/profile`); await picture('profile');
    await page.goto(`${url}/accounts/${account}/limits`); await picture('limits');
    await page.goto(`${url}/accounts/${account}/plan`); await picture('plan');
  },
  async nothingBrokeOnTheWay() {
    assert.deepEqual(faults, []);
  },
};

const failed = await run(journeys, `portal on ${kind}`);
await browser.close();
rmSync(folder, { recursive: true, force: true });
process.exit(failed ? 1 : 0);
