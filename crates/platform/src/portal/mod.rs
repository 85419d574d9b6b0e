//! The developer portal: pages for whoever wants to know, sign up, make keys, see usage and pay; and the operator's console. Written
//! on the server, usable without a script but for the playground and the charts. `guard` holds who may use which route.
//!
//! What it deliberately does not do: decide what a role may (the policy's), draw up invoices (billing's), or know a key.

mod account;
mod assets;
mod audit_log;
mod billing;
mod entry;
mod guard;
mod guides;
mod keys;
mod members;
mod operator;
mod operator_invoices;
mod page;
mod passkeys;
mod payment;
mod playground;
mod profile;
mod public;
mod usage;
mod webhooks;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use bitnet_server::App;

use crate::error::PlatformError;
use crate::identity::mail::{Mail, MailRoute, MailSender, mailer};
use crate::identity::{Identity, Visitor};
use crate::notices::Notices;
use crate::platform::Platform;
use crate::policy::{Action, Policy};
use crate::secret_file::InstallationSecret;
use crate::time::{Clock, Timestamp};

pub use guard::{Access, RouteRow};
pub(crate) use page::dollars;

/// Who can reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// This machine alone: whoever signs up first, by the link of the terminal, is the operator.
    Machine,
    /// Others too.
    Network,
}

/// What a portal must be told.
#[derive(Debug, Clone)]
pub struct PortalConfig {
    /// Where people reach it, such as `https://ai.example.com`: links in mails lead there.
    pub public_url: String,
    /// Who can reach it.
    pub reach: Reach,
    /// How mail leaves.
    pub mail: MailRoute,
    /// What is done with a mail where there is no mail server.
    pub show_mail: fn(&Mail),
    /// How pages ask for cards, where they do.
    pub cards: Option<CardForm>,
}

/// Stripe's own field for cards, on a page of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardForm {
    /// Stripe's key for pages, which is no secret.
    pub publishable_key: String,
    /// Where Stripe's script is, such as `https://js.stripe.com/v3/`.
    pub script: String,
}

impl CardForm {
    /// What the one page may load that asks for cards: Stripe's besides our own.
    fn content_policy(&self) -> String {
        let stripe = origin(&self.script);
        format!(
            "default-src 'none'; script-src 'self' {stripe}; style-src 'self'; img-src 'self'; connect-src 'self' {stripe} https://api.stripe.com; frame-src {stripe} https://hooks.stripe.com; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> &str {
    let host_at = url.find("://").map_or(0, |at| at + 3);
    let end = url[host_at..].find('/').map_or(url.len(), |at| host_at + at);
    &url[..end]
}

/// Sends what the portal mails, and what members are told.
pub struct Post {
    sender: MailSender,
    notices: Notices,
    now: Clock,
}

impl Post {
    /// Sends for ever, or until the portal is gone.
    pub async fn run(self) {
        tokio::select! {
            () = self.sender.run() => {}
            () = self.notices.run(self.now) => {}
        }
    }

    /// Sends what members are to be told now; says how many mails that were.
    pub async fn send_due(&self, now: Timestamp) -> Result<usize, PlatformError> {
        self.notices.send_due(now).await
    }
}

/// See the module; cheap to clone.
#[derive(Clone)]
pub struct Portal(Arc<Inner>);

struct Inner {
    platform: Platform,
    app: App,
    identity: Arc<Identity>,
    policy: Policy,
    config: PortalConfig,
    forms_key: [u8; 32],
    /// The description of the API.
    openapi: serde_json::Value,
}

impl Portal {
    /// A portal of a platform, on a server; and what sends its mails and those to members, which somebody must run.
    pub fn new(platform: Platform, app: App, secret: &InstallationSecret, config: PortalConfig) -> Result<(Self, Post), PlatformError> {
        let public_url = config.public_url.trim_end_matches('/').to_string();
        if !public_url.starts_with("http://") && !public_url.starts_with("https://") {
            let reason = format!("expected one such as https://ai.example.com, got {public_url:?}");
            return Err(PlatformError::Invalid { field: "public_url", reason });
        }
        let (mailer, sender) = mailer(&config.mail, config.show_mail)?;
        let identity = Arc::new(Identity::new(platform.store().clone(), secret, mailer, public_url.clone())?);
        let notices = Notices::new(platform.store().clone(), sender.courier(), public_url.clone());
        let post = Post { sender, notices, now: platform.clock() };
        let forms_key = secret.derive("bitnet platform 2026 forms of the portal");
        let (policy, config) = (Policy::of_roles()?, PortalConfig { public_url, ..config });
        Ok((Self(Arc::new(Inner { platform, app, identity, policy, config, forms_key, openapi: bitnet_server::openapi() })), post))
    }

    pub(crate) fn platform(&self) -> &Platform {
        &self.0.platform
    }

    fn app(&self) -> &App {
        &self.0.app
    }

    pub(crate) fn identity(&self) -> &Arc<Identity> {
        &self.0.identity
    }

    fn policy(&self) -> &Policy {
        &self.0.policy
    }

    fn openapi(&self) -> &serde_json::Value {
        &self.0.openapi
    }

    fn now(&self) -> Timestamp {
        self.0.platform.now()
    }

    /// Learns now what was just changed, and not within a moment: what a page leads to may need it.
    async fn know(&self) -> Result<(), PlatformError> {
        self.platform().directory().refresh(self.now()).await.map(|_| ())
    }

    fn public_url(&self) -> &str {
        &self.0.config.public_url
    }

    fn public_origin(&self) -> String {
        origin(self.public_url()).to_string()
    }

    fn is_secure(&self) -> bool {
        self.public_url().starts_with("https://")
    }

    fn is_private(&self) -> bool {
        self.0.config.reach == Reach::Machine
    }

    fn sends_mail(&self) -> bool {
        self.0.config.mail != MailRoute::Terminal
    }

    fn card_form(&self) -> Option<&CardForm> {
        self.0.config.cards.as_ref()
    }

    fn cookie_name(&self) -> &'static str {
        if self.is_secure() { "__Host-bitnet" } else { "bitnet_session" }
    }

    fn body_timeout(&self) -> Duration {
        self.app().config().body_timeout
    }

    /// What shows that a form was written for a session.
    fn csrf_of(&self, visitor: &Visitor) -> String {
        blake3::keyed_hash(&self.0.forms_key, &visitor.session.hash).to_hex().as_str()[..32].to_string()
    }

    /// Where whoever started the program signs up while nobody has: the only way to become the operator without a command. It is to be
    /// shown to them and to nobody else, and is another each time. Where others can reach the server, it proves nothing: the command
    /// makes operators there.
    pub fn first_url(&self) -> String {
        let path = if self.is_private() { self.identity().first_path() } else { "/sign-up".into() };
        format!("{}{path}", self.public_url())
    }

    /// Every route, with who may use it.
    pub fn rows(&self) -> Vec<RouteRow> {
        self.table().finish().1
    }

    /// The routes that it answers.
    pub fn routes(&self) -> Router<App> {
        self.table().finish().0.with_state(self.clone()).merge(crate::organization::invitation_routes(self.clone()))
    }

    fn table(&self) -> guard::Routes {
        let routes = self.entry_routes(self.public_routes(guard::Routes::new(self.clone())));
        self.operator_routes(self.account_routes(routes))
    }

    fn public_routes(&self, routes: guard::Routes) -> guard::Routes {
        routes
            .get("/", Access::Anyone, public::landing)
            .get("/pricing", Access::Anyone, public::pricing)
            .get("/status", Access::Anyone, public::status)
            .get("/guides", Access::Anyone, guides::index)
            .get("/guides/{page}", Access::Anyone, guides::page)
            .get("/reference", Access::Anyone, guides::reference)
            .get("/reference/{operation}", Access::Anyone, guides::operation)
            .get("/assets/{file}", Access::Anyone, assets::get)
    }

    fn entry_routes(&self, routes: guard::Routes) -> guard::Routes {
        routes
            .get("/sign-up", Access::Anyone, entry::sign_up_page)
            .post("/sign-up", Access::Anyone, entry::sign_up)
            .get("/check-mail", Access::Anyone, entry::check_mail)
            .get("/confirm/{link}", Access::Anyone, entry::confirm_page)
            .post("/confirm/{link}", Access::Anyone, entry::confirm)
            .get("/log-in", Access::Anyone, entry::log_in_page)
            .post("/log-in", Access::Anyone, entry::log_in)
            .post("/log-in/passkey", Access::Anyone, passkeys::sign_in)
            .post("/log-in/passkey/begin", Access::Anyone, passkeys::begin_sign_in)
            .get("/log-in/code", Access::Anyone, entry::code_page)
            .post("/log-in/code", Access::Anyone, entry::code)
            .get("/forgot", Access::Anyone, entry::forgot_page)
            .post("/forgot", Access::Anyone, entry::forgot)
            .get("/reset/{link}", Access::Anyone, entry::reset_page)
            .post("/reset/{link}", Access::Anyone, entry::reset)
            .post("/log-out", Access::Person, entry::log_out)
            .post("/log-out/everywhere", Access::Person, entry::log_out_everywhere)
            .get("/invitations/{link}", Access::Anyone, members::invitation_page)
            .post("/invitations/{link}", Access::Person, members::accept)
            .get("/profile", Access::Person, profile::page)
            .post("/profile/password", Access::Person, profile::password)
            .post("/profile/passkeys", Access::Person, passkeys::add)
            .post("/profile/passkeys/begin", Access::Person, passkeys::begin)
            .post("/profile/passkeys/{passkey}/remove", Access::Person, passkeys::remove)
            .post("/profile/notices", Access::Person, profile::notices)
            .get("/profile/second-factor", Access::Person, profile::second_factor_page)
            .post("/profile/second-factor", Access::Person, profile::second_factor)
            .post("/profile/second-factor/off", Access::Person, profile::second_factor_off)
    }

    fn account_routes(&self, routes: guard::Routes) -> guard::Routes {
        let member = Access::Member;
        routes
            .get("/accounts", Access::Person, account::choose)
            .post("/accounts", Access::Person, account::create)
            .get("/accounts/{account}", member(Action::ViewAccount), account::overview)
            .get("/accounts/{account}/start", member(Action::ManageKeys), account::start)
            .post("/accounts/{account}/start", member(Action::ManageKeys), account::first_key)
            .get("/accounts/{account}/start/seen", member(Action::ViewAccount), account::seen)
            .get("/accounts/{account}/playground", member(Action::UseModels), playground::page)
            .post("/accounts/{account}/playground/key", member(Action::UseModels), playground::lend)
            .get("/accounts/{account}/models", member(Action::ViewAccount), account::models)
            .get("/accounts/{account}/usage", member(Action::ViewUsage), usage::page)
            .get("/accounts/{account}/usage.json", member(Action::ViewUsage), usage::data)
            .get("/accounts/{account}/keys", member(Action::ViewKeys), keys::page)
            .post("/accounts/{account}/keys", member(Action::ManageKeys), keys::create)
            .post("/accounts/{account}/keys/{key}/rotate", member(Action::ManageKeys), keys::rotate)
            .post("/accounts/{account}/keys/{key}/revoke", member(Action::ManageKeys), keys::revoke)
            .get("/accounts/{account}/members", member(Action::ViewMembers), members::page)
            .post("/accounts/{account}/members/invite", member(Action::ManageMembers), members::invite)
            .post("/accounts/{account}/members/{person}/role", member(Action::ManageMembers), members::set_role)
            .post("/accounts/{account}/members/{person}/remove", member(Action::ManageMembers), members::remove)
            .post("/accounts/{account}/invitations/{invitation}/revoke", member(Action::ManageMembers), members::uninvite)
            .get("/accounts/{account}/limits", member(Action::ViewUsage), billing::limits)
            .post("/accounts/{account}/projects", member(Action::ManageProjects), billing::create_project)
            .post("/accounts/{account}/projects/{project}", member(Action::ManageProjects), billing::bound_project)
            .get("/accounts/{account}/invoices", member(Action::ViewInvoices), billing::invoices)
            .get("/accounts/{account}/invoices/draft.html", member(Action::ViewInvoices), billing::draft)
            .get("/accounts/{account}/invoices/{invoice}", member(Action::ViewInvoices), billing::issued)
            .post("/accounts/{account}/invoices/{invoice}/pay", member(Action::ManageBilling), payment::pay)
            .get("/accounts/{account}/payment", member(Action::ViewInvoices), payment::page)
            .post("/accounts/{account}/payment", member(Action::ManageBilling), payment::set_card)
            .post("/accounts/{account}/payment/begin", member(Action::ManageBilling), payment::begin)
            .get("/accounts/{account}/plan", member(Action::ViewInvoices), billing::plan)
            .post("/accounts/{account}/plan", member(Action::ManageBilling), billing::change_plan)
            .get("/accounts/{account}/webhooks", member(Action::ManageAccount), webhooks::page)
            .post("/accounts/{account}/webhooks", member(Action::ManageAccount), webhooks::create)
            .post("/accounts/{account}/webhooks/{webhook}/rotate", member(Action::ManageAccount), webhooks::rotate)
            .post("/accounts/{account}/webhooks/{webhook}/remove", member(Action::ManageAccount), webhooks::remove)
            .get("/accounts/{account}/audit", member(Action::ViewAudit), audit_log::page)
            .get("/accounts/{account}/audit.jsonl", member(Action::ViewAudit), audit_log::export)
            .get("/accounts/{account}/settings", member(Action::ManageAccount), account::settings)
            .post("/accounts/{account}/settings", member(Action::ManageAccount), account::rename)
    }

    fn operator_routes(&self, routes: guard::Routes) -> guard::Routes {
        routes
            .get("/operator", Access::Operator, operator::overview)
            .post("/operator/reconcile", Access::Operator, operator::reconcile)
            .get("/operator/accounts", Access::Operator, operator::accounts)
            .get("/operator/accounts/{id}", Access::Operator, operator::account)
            .post("/operator/accounts/{id}/plan", Access::Operator, operator::set_plan)
            .post("/operator/accounts/{id}/credit", Access::Operator, operator::give_credit)
            .post("/operator/accounts/{id}/spending", Access::Operator, operator::set_spending)
            .post("/operator/accounts/{id}/status", Access::Operator, operator::set_status)
            .get("/operator/accounts/{id}/invoices/{invoice}", Access::Operator, operator_invoices::page)
            .post("/operator/accounts/{id}/invoices/{invoice}/paid", Access::Operator, operator_invoices::paid)
            .post("/operator/accounts/{id}/invoices/{invoice}/credit", Access::Operator, operator_invoices::credit)
            .post("/operator/accounts/{id}/invoices/{invoice}/refund", Access::Operator, operator_invoices::refund)
            .get("/operator/people", Access::Operator, operator::people)
            .post("/operator/people/{person}", Access::Operator, operator::set_operator)
            .get("/operator/audit", Access::Operator, audit_log::all)
    }
}
