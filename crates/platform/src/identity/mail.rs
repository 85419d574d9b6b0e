//! Mail: over SMTP where a server is configured, and shown to whoever runs the program where none is, so that a fresh machine needs
//! nothing. Mails wait in memory, a bounded number, and are tried again for some minutes; what they are about can be asked for again.

use std::time::Duration;

use lettre::message::{Mailbox, Message};
use lettre::{AsyncSmtpTransport, AsyncTransport, Tokio1Executor};
use tokio::sync::mpsc;

use crate::error::PlatformError;
use crate::limits::N_MAILS_WAITING_MAX;

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
    smtp: Option<(AsyncSmtpTransport<Tokio1Executor>, Mailbox)>,
    show: fn(&Mail),
}

const PAUSES: [Duration; 4] = [Duration::from_secs(2), Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(240)];

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
    Ok((Mailer(sender), MailSender { waiting, smtp, show }))
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

impl MailSender {
    /// Sends for ever.
    pub async fn run(mut self) {
        while let Some(mail) = self.waiting.recv().await {
            match &self.smtp {
                None => (self.show)(&mail),
                Some((transport, from)) => deliver(transport, from, &mail).await,
            }
        }
    }
}

async fn deliver(transport: &AsyncSmtpTransport<Tokio1Executor>, from: &Mailbox, mail: &Mail) {
    let message = match message(from, mail) {
        Ok(message) => message,
        Err(error) => return tracing::error!(%error, subject = mail.subject, "a mail could not be written"),
    };
    for pause in PAUSES {
        // Addresses and texts stay out of the log: they hold links that open accounts.
        match transport.send(message.clone()).await {
            Ok(_) => return tracing::info!(subject = mail.subject, "a mail was sent"),
            Err(error) if error.is_permanent() => return tracing::error!(%error, subject = mail.subject, "a mail was refused"),
            Err(error) => tracing::warn!(%error, subject = mail.subject, "a mail could not be sent, and is tried again"),
        }
        tokio::time::sleep(pause).await;
    }
    tracing::error!(subject = mail.subject, "a mail could not be sent");
}

fn message(from: &Mailbox, mail: &Mail) -> Result<Message, PlatformError> {
    let failed = |error: &dyn std::fmt::Display| PlatformError::Mail { reason: error.to_string() };
    let to: Mailbox = mail.to.parse().map_err(|error: lettre::address::AddressError| failed(&error))?;
    let builder = Message::builder().from(from.clone()).to(to).subject(mail.subject.clone());
    builder.header(lettre::message::header::ContentType::TEXT_PLAIN).body(mail.text.clone()).map_err(|error| failed(&error))
}
