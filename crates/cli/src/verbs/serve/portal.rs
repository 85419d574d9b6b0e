//! How a server's portal is reached and how its mail leaves.

use std::net::SocketAddr;

use bitnet_platform::identity::mail::{Mail, MailRoute};
use bitnet_platform::portal::{CardForm, PortalConfig, Reach};
use clap::Args;

/// What a portal must be told.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Platform")]
pub(crate) struct PortalArguments {
    /// Where people reach the portal, such as https://ai.example.com; links in mails lead there. By default where the server listens
    #[arg(long, value_name = "URL", env = "BITNET_PUBLIC_URL", hide_env_values = true)]
    public_url: Option<String>,
    /// The server that sends mail, such as smtp://user:password@mail.example.com:587?tls=required; without one, mails are shown in this
    /// terminal
    #[arg(long, value_name = "URL", env = "BITNET_SMTP", hide_env_values = true)]
    smtp: Option<String>,
    /// Who mails are from
    #[arg(long, value_name = "ADDRESS", env = "BITNET_MAIL_FROM", default_value = "bitnet@localhost", hide_short_help = true)]
    mail_from: String,
}

impl PortalArguments {
    /// Where people reach a server that listens there, over TLS or not.
    pub(super) fn url(&self, (address, has_tls): (SocketAddr, bool)) -> String {
        let scheme = if has_tls { "https" } else { "http" };
        // An address that stands for all is no place to go to.
        let is_any = address.ip().is_unspecified();
        let listening = || if is_any { format!("{scheme}://localhost:{}", address.port()) } else { format!("{scheme}://{address}") };
        self.public_url.as_deref().filter(|url| !url.is_empty()).map_or_else(listening, |url| url.trim_end_matches('/').to_string())
    }

    pub(super) fn config(&self, at: (SocketAddr, bool), cards: Option<CardForm>) -> PortalConfig {
        let smtp = self.smtp.clone().filter(|url| !url.is_empty());
        let is_private = at.0.ip().is_loopback() && self.public_url.is_none();
        PortalConfig {
            public_url: self.url(at),
            reach: if is_private { Reach::Machine } else { Reach::Network },
            mail: smtp.map_or(MailRoute::Terminal, |url| MailRoute::Smtp { url, from: self.mail_from.clone() }),
            show_mail,
            cards,
        }
    }
}

/// What stands in for a mail server: whoever runs the program sees what would have been sent.
fn show_mail(mail: &Mail) {
    eprintln!("\nmail to {}: {}\n{}", mail.to, mail.subject, mail.text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portal_is_reached_where_it_is_said_to_be() {
        let arguments =
            |public_url: Option<&str>| PortalArguments { public_url: public_url.map(Into::into), smtp: None, mail_from: "a@b.c".into() };
        let at = |address: &str, has_tls| (address.parse().expect("an address"), has_tls);
        let own = arguments(None).config(at("127.0.0.1:8080", false), None);
        assert_eq!((own.public_url.as_str(), own.reach, own.mail), ("http://127.0.0.1:8080", Reach::Machine, MailRoute::Terminal));
        let open = arguments(None).config(at("0.0.0.0:443", true), None);
        assert_eq!((open.public_url.as_str(), open.reach), ("https://localhost:443", Reach::Network));
        let proxied = arguments(Some("https://ai.example.com/")).config(at("127.0.0.1:8080", false), None);
        assert_eq!((proxied.public_url.as_str(), proxied.reach), ("https://ai.example.com", Reach::Network), "somebody stands between");
    }
}
