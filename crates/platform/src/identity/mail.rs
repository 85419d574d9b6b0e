//! Mail: over SMTP where a server is configured, and shown to whoever runs the program where none is, so that a fresh machine needs
//! nothing. Mails wait in memory, a bounded number, and are tried again for some minutes; what they are about can be asked for again.

use std::time::Duration;

use lettre::message::{Mailbox, Message};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::PlatformError;
use crate::limits::{N_MAILS_DEFERRED_MAX, N_MAILS_WAITING_MAX};

/// How mail leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MailRoute {
    /// `smtp://user:password@host:port?tls=required` or `smtps://…`.
    Smtp { url: String, from: String },
    /// It is shown to whoever runs the program.
    Terminal,
}

/// A mail to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mail {
    /// To whom.
    pub to: String,
    /// What about.
    pub subject: String,
    /// Plain text.
    pub text: String,
}

/// Takes mails to be sent.
#[derive(Clone)]
pub struct Mailer(mpsc::Sender<Mail>);

/// Sends what a [`Mailer`] takes.
pub struct MailSender {
    waiting: mpsc::Receiver<Mail>,
    courier: Courier,
}

/// Sends one mail and says what became of it: for those who keep their mails themselves.
#[derive(Clone)]
pub(crate) struct Courier {
    smtp: Option<(AsyncSmtpTransport<Tokio1Executor>, Mailbox)>,
    show: fn(&Mail),
}

/// Why a mail is still here.
#[derive(Debug)]
pub(crate) enum Undelivered {
    /// It will never be taken.
    Refused { reason: String },
    /// It may be taken later.
    Later { reason: String },
}

impl Courier {
    /// Hands a mail to the mail server under an id that it always has, so that nobody sees it twice who gets it twice.
    pub(crate) async fn deliver(&self, mail: &Mail, id: &str) -> Result<(), Undelivered> {
        let Some((transport, from)) = &self.smtp else {
            (self.show)(mail);
            return Ok(());
        };
        let id = format!("<{id}@{}>", from.email.domain());
        let message = message(from, mail, Some(id)).map_err(|error| Undelivered::Refused { reason: error.to_string() })?;
        match transport.send(message).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_permanent() => Err(Undelivered::Refused { reason: error.to_string() }),
            Err(error) => Err(Undelivered::Later { reason: error.to_string() }),
        }
    }
}

const PAUSES: [Duration; 4] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(240)];
/// For how long nothing is looked at while nothing is due.
const LONG: Duration = Duration::from_secs(3600);

/// A mailer and what sends its mails; `show` is what is done with them where there is no server.
pub fn mailer(route: &MailRoute, show: fn(&Mail)) -> Result<(Mailer, MailSender), PlatformError> {
    let smtp = match route {
        MailRoute::Terminal => None,
        MailRoute::Smtp { url, from } => {
            let from = from.parse::<Mailbox>().map_err(|error| invalid("mail_from", &error))?;
            let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url).map_err(|error| invalid("smtp", &error))?;
            Some((builder.timeout(Some(Duration::from_secs(20))).build(), from))
        }
    };
    let (sender, waiting) = mpsc::channel(N_MAILS_WAITING_MAX);
    Ok((Mailer(sender), MailSender { waiting, courier: Courier { smtp, show } }))
}

fn invalid(field: &'static str, error: &dyn std::fmt::Display) -> PlatformError {
    PlatformError::Invalid { field, reason: error.to_string() }
}

impl Mailer {
    /// Hands a mail over. It is sent later: whether an address exists cannot be told by how long this takes.
    pub fn send(&self, mail: Mail) -> Result<(), PlatformError> {
        self.0.try_send(mail).map_err(|_| PlatformError::Mail { reason: "too many wait to be sent".into() })
    }
}

/// A mail that could not be sent, until it is tried again.
struct Deferred {
    due: Instant,
    message: Message,
    subject: String,
    /// How often it was tried.
    n_tries: usize,
}

/// The place of the mail that is due first.
fn first_due(deferred: &[Deferred]) -> Option<usize> {
    deferred.iter().enumerate().min_by_key(|(_, mail)| mail.due).map(|(index, _)| index)
}

impl MailSender {
    /// Sends the same way.
    pub(crate) fn courier(&self) -> Courier {
        self.courier.clone()
    }

    /// Sends for ever. A mail that cannot be sent now waits aside: others overtake it.
    pub async fn run(self) {
        let Self { mut waiting, courier: Courier { smtp, show } } = self;
        let Some((transport, from)) = smtp else {
            while let Some(mail) = waiting.recv().await {
                show(&mail);
            }
            return;
        };
        let mut deferred: Vec<Deferred> = Vec::new();
        loop {
            let first = first_due(&deferred);
            // What is long away waits for a new mail alone.
            let due = first.map_or_else(|| Instant::now() + LONG, |index| deferred[index].due);
            let taken = tokio::select! {
                mail = waiting.recv() => match mail {
                    Some(mail) => written(&from, mail),
                    None => return,
                },
                () = tokio::time::sleep_until(due) => first.map(|index| deferred.swap_remove(index)),
            };
            let Some(taken) = taken else { continue };
            let Some(again) = attempt(&transport, taken).await else { continue };
            if deferred.len() < N_MAILS_DEFERRED_MAX {
                deferred.push(again);
            } else {
                tracing::error!(subject = again.subject, "a mail is given up: too many wait to be tried again");
            }
        }
    }
}

fn written(from: &Mailbox, mail: Mail) -> Option<Deferred> {
    match message(from, &mail, None) {
        Ok(message) => Some(Deferred { due: Instant::now(), message, subject: mail.subject, n_tries: 0 }),
        Err(error) => {
            tracing::error!(%error, subject = mail.subject, "a mail could not be written");
            None
        }
    }
}

/// Tries once; returns what is to be tried again.
async fn attempt(transport: &AsyncSmtpTransport<Tokio1Executor>, mail: Deferred) -> Option<Deferred> {
    let Deferred { message, subject, n_tries, .. } = mail;
    // Addresses and texts stay out of the log: they hold links that open accounts.
    let error = match transport.send(message.clone()).await {
        Ok(_) => {
            tracing::info!(subject, "a mail was sent");
            return None;
        }
        Err(error) if error.is_permanent() => {
            tracing::error!(%error, subject, "a mail was refused");
            return None;
        }
        Err(error) => error,
    };
    let Some(pause) = PAUSES.get(n_tries) else {
        tracing::error!(%error, subject, "a mail could not be sent, and is given up");
        return None;
    };
    tracing::warn!(%error, subject, "a mail could not be sent, and is tried again");
    Some(Deferred { due: Instant::now() + *pause, message, subject, n_tries: n_tries + 1 })
}

/// Without an id, it gets a new one.
fn message(from: &Mailbox, mail: &Mail, id: Option<String>) -> Result<Message, PlatformError> {
    let failed = |error: &dyn std::fmt::Display| PlatformError::Mail { reason: error.to_string() };
    let to: Mailbox = mail.to.parse().map_err(|error: lettre::address::AddressError| failed(&error))?;
    let builder = Message::builder().message_id(id).from(from.clone()).to(to).subject(mail.subject.clone());
    builder.header(lettre::message::header::ContentType::TEXT_PLAIN).body(mail.text.clone()).map_err(|error| failed(&error))
}
