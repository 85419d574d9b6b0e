//! `bitnet invoices`: what accounts owe. Drafts are drawn up from the ledger; months that are over are closed into invoices with numbers,
//! by a server that runs or by this command, whichever is first.

use std::path::{Path, PathBuf};

use anyhow::Context;
use bitnet_platform::billing::Invoice;
use bitnet_platform::ids::{AccountId, InvoiceId};
use bitnet_platform::money::Micros;
use bitnet_platform::payment::{HookSecret, Payments, Stripe};
use bitnet_platform::platform::CURRENCY;
use bitnet_platform::time::Period;
use clap::{Args, Subcommand};

use crate::table::Table;
use crate::terminal::Terminal;
use crate::verbs::platform::{PlatformArguments, STRIPE_URL, Session, stripe_secret, with};

/// Invoices of the platform's accounts: draft, finalize, show, credit, refund
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  bitnet invoices draft acct_… --html draft.html\n  bitnet invoices finalize\n  bitnet invoices list\n  bitnet invoices show inv_… --pdf invoice.pdf\n  bitnet invoices credit inv_… 12.50 --reason \"a day was lost\"\n  BITNET_STRIPE_KEY=sk_… bitnet invoices refund inv_… 12.50 --reason \"a day was lost\"\n  bitnet invoices paid inv_… --reference \"transfer of 3 May\""
)]
pub(crate) struct InvoicesArguments {
    #[command(subcommand)]
    deed: Deed,
    #[command(flatten)]
    platform: PlatformArguments,
}

/// How an invoice is shown.
#[derive(Debug, Args)]
struct Shown {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a page
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write a PDF file
    #[arg(long, value_name = "FILE")]
    pdf: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Deed {
    /// Draw up what a month has come to so far
    Draft {
        account: AccountId,
        /// Which month, such as 2026-01; by default the present one
        #[arg(long)]
        month: Option<Period>,
        #[command(flatten)]
        shown: Shown,
    },
    /// Close all months that are over, and issue their invoices; again, it changes nothing
    Finalize {
        /// Only this account's
        account: Option<AccountId>,
    },
    /// List invoices and credit notes, of an account or of all, the newest first
    List { account: Option<AccountId> },
    /// Show an invoice that was issued
    Show {
        invoice: InvoiceId,
        #[command(flatten)]
        shown: Shown,
    },
    /// List the requests behind a line of an invoice
    Requests {
        invoice: InvoiceId,
        /// The line's id, as --json says
        line: String,
        /// Only those behind this one
        #[arg(long, default_value_t = 0)]
        after: u64,
    },
    /// Take an amount off an invoice, by a credit note
    Credit {
        invoice: InvoiceId,
        /// With its taxes, such as 12.50
        amount: Micros,
        /// Why, for the customer
        #[arg(long)]
        reason: String,
    },
    /// Send back what was paid by card, with a credit note; asked again while its end is not known, it is the same refund
    Refund {
        invoice: InvoiceId,
        /// With its taxes, such as 12.50
        amount: Micros,
        /// Why, for the customer
        #[arg(long)]
        reason: String,
        /// Where Stripe is; its secret key comes in BITNET_STRIPE_KEY
        #[arg(long, value_name = "URL", env = "BITNET_STRIPE_URL", hide_env_values = true, default_value = STRIPE_URL)]
        stripe: String,
    },
    /// Note that an invoice was paid, such as by a bank transfer
    Paid {
        invoice: InvoiceId,
        /// By what
        #[arg(long)]
        reference: String,
    },
    /// Give an invoice up that nobody will pay
    GiveUp { invoice: InvoiceId },
}

/// Does one of them.
pub(crate) fn perform(arguments: &InvoicesArguments, terminal: &Terminal) -> anyhow::Result<()> {
    with(&arguments.platform, async |session| match &arguments.deed {
        Deed::Draft { account, month, shown } => {
            let now = session.by.at;
            let invoice = session.store.draft_invoice(*account, month.unwrap_or(now.period()), now).await?;
            show(&invoice, shown, terminal)
        }
        Deed::Finalize { account } => finalize(session, *account, terminal).await,
        Deed::List { account } => list(session, *account, terminal).await,
        Deed::Show { invoice, shown } => show(&session.store.invoice(*invoice, None).await?, shown, terminal),
        Deed::Requests { invoice, line, after } => requests(session, (*invoice, line, *after), terminal).await,
        Deed::Credit { invoice, amount, reason } => {
            println!("{}", session.store.credit_invoice(*invoice, (*amount, reason), &session.by).await?);
            Ok(())
        }
        Deed::Refund { invoice, amount, reason, stripe } => refund(session, (*invoice, *amount, reason), stripe, terminal).await,
        Deed::Paid { invoice, reference } => Ok(session.store.mark_paid(*invoice, reference, &session.by).await?),
        Deed::GiveUp { invoice } => Ok(session.store.give_invoice_up(*invoice, &session.by).await?),
    })
}

fn show(invoice: &Invoice, shown: &Shown, terminal: &Terminal) -> anyhow::Result<()> {
    let write = |path: &Path, bytes: &[u8]| std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()));
    if let Some(path) = &shown.html {
        write(path, invoice.to_html(CURRENCY)?.as_bytes())?;
    }
    if let Some(path) = &shown.pdf {
        write(path, &invoice.to_pdf(CURRENCY))?;
    }
    if shown.json {
        println!("{:#}", invoice.to_json(CURRENCY));
        return Ok(());
    }
    let mut table = Table::new(&["what", "requests", CURRENCY]);
    table.align_right(&[1, 2]);
    for line in &invoice.lines {
        table.row(vec![line.text.clone(), line.n_requests.to_string(), line.amount.to_string()]);
    }
    table.row(vec!["total".into(), String::new(), invoice.total().to_string()]);
    if invoice.issued.is_some() {
        table.row(vec!["still to be paid".into(), String::new(), invoice.outstanding().to_string()]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}

async fn finalize(session: &Session, account: Option<AccountId>, terminal: &Terminal) -> anyhow::Result<()> {
    let closed = session.store.close_periods(account, &session.by).await?;
    for month in &closed {
        if let Some(invoice) = month.invoice {
            println!("{invoice}");
        }
    }
    let n_invoices = closed.iter().filter(|month| month.invoice.is_some()).count();
    terminal.note(&format!("{} months of accounts were closed, {n_invoices} with an invoice", closed.len()));
    Ok(())
}

async fn list(session: &Session, account: Option<AccountId>, terminal: &Terminal) -> anyhow::Result<()> {
    let mut table = Table::new(&["number", "invoice", "account", "month", "issued", "status", CURRENCY]);
    table.align_right(&[6]);
    for (invoice, total) in session.store.invoices(account).await? {
        let Some(issued) = &invoice.issued else { continue };
        table.row(vec![
            issued.number.clone(),
            issued.id.to_string(),
            invoice.account_name.clone(),
            invoice.period.to_string(),
            invoice.at.to_date(),
            issued.status.name().into(),
            total.to_string(),
        ]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}

async fn refund(
    session: &Session,
    (invoice, amount, reason): (InvoiceId, Micros, &str),
    url: &str,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let stripe = Stripe::new(url, &stripe_secret("BITNET_STRIPE_KEY")?).context("Stripe cannot be used")?;
    // No event is heard here, so no event's secret is needed.
    let payments = Payments::new(session.store.clone(), stripe, HookSecret::new(""));
    let done = payments.refund(invoice, (amount, reason), &session.by).await?;
    let mut table = Table::new(&["refund", "status", "credit note", CURRENCY]);
    table.align_right(&[3]);
    for refund in done {
        let note = refund.note.map_or_else(String::new, |note| note.to_string());
        table.row(vec![refund.id.to_string(), refund.status, note, refund.amount.to_string()]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}

async fn requests(session: &Session, (id, line, after): (InvoiceId, &str, u64), terminal: &Terminal) -> anyhow::Result<()> {
    let account = session.store.invoice(id, None).await?.account;
    let mut table = Table::new(&["entry", "request", "outcome", "input", "cached", "output", "charge", "due"]);
    table.align_right(&[3, 4, 5, 6, 7]);
    for request in session.store.issued_line_requests((account, id), &line.parse()?, after).await? {
        let [n_input, n_cached, n_output] = request.tokens.map(|n| n.to_string());
        let (charge, due) = (Micros(request.charge_micros).to_string(), Micros(request.due_micros).to_string());
        table.row(vec![request.seq.to_string(), request.request_id, request.outcome, n_input, n_cached, n_output, charge, due]);
    }
    Ok(table.write(&mut std::io::stdout().lock(), terminal)?)
}
