//! Who shares an account and does not wish it well: what roles, keys, members and invitations let them do, in what is sent and not only
//! in which route.

use axum::http::StatusCode;
use bitnet_platform::PlatformError;
use bitnet_platform::directory::KeyAccess;
use bitnet_platform::identity::OwnersRight;
use bitnet_platform::policy::Role;
use bitnet_platform::portal::Reach;
use sqlx::AnyPool;

use super::store::on_both;
use super::visitor::{Site, Visitor};

/// A member of an account, made in the database.
async fn member(site: &Site, url: &str, (account, role): (&str, &str)) -> Visitor {
    let email = format!("{role}@team-{}.example", &account[account.len() - 8..]);
    let visitor = site.person(&email).await;
    let pool = AnyPool::connect(url).await.expect("it connects");
    let insert = "INSERT INTO member (account_id, person_id, role, created_at) SELECT $1, id, $2, 0 FROM person WHERE email = $3";
    let query = sqlx::query(insert).bind(account.to_string()).bind(role.to_string()).bind(email);
    query.execute(&pool).await.expect("it writes");
    pool.close().await;
    visitor
}

#[test]
fn key_for_administration_is_no_developers_to_make_rotate_or_revoke() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@admin-key.example").await;
        let account = ann.account().await;
        let (dev, admin) = (member(&site, &url, (&account, "developer")).await, member(&site, &url, (&account, "admin")).await);
        let keys = format!("/accounts/{account}/keys");
        let project = store.projects(Some(account.parse().expect("an id"))).await.expect("it reads")[0].id.to_string();
        let wanted = |access: &'static str| [("name", "k"), ("project", project.as_str()), ("access", access)];
        let n_keys = || async { store.api_keys(Some(account.parse().expect("an id"))).await.expect("it reads").len() };
        let admin_option = r#"<option value="admin">administration"#;
        assert!(!dev.get(&keys).await.body.contains(admin_option) && admin.get(&keys).await.body.contains(admin_option));
        assert_eq!(dev.send_form(&keys, &wanted("admin")).await.status, StatusCode::FORBIDDEN);
        assert_eq!(n_keys().await, 0, "none was made");
        assert_eq!(dev.send_form(&keys, &wanted("inference")).await.status, StatusCode::OK, "keys for models are a developer's");
        assert_eq!(admin.send_form(&keys, &wanted("admin")).await.status, StatusCode::OK);
        let made = store.api_keys(Some(account.parse().expect("an id"))).await.expect("it reads");
        let id = made.iter().find(|key| key.access == KeyAccess::Admin).expect("it was made").id;
        assert!(!dev.get(&keys).await.body.contains(&format!("{id}/rotate")));
        for deed in ["rotate", "revoke"] {
            assert_eq!(dev.send_form(&format!("{keys}/{id}/{deed}"), &[]).await.status, StatusCode::FORBIDDEN, "{deed}");
        }
        assert_eq!(n_keys().await, 2, "and none was rotated");
        assert_eq!(admin.send_form(&format!("{keys}/{id}/rotate"), &[]).await.status, StatusCode::OK);
        assert!(admin.send_form(&format!("{keys}/{id}/revoke"), &[]).await.location().ends_with("said=revoked"));
        site.end().await;
    });
}

#[test]
fn invitations_end_with_the_role_of_who_sent_them_and_are_not_for_all_the_world() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@invites.example").await;
        let account = ann.account().await;
        let id = account.parse().expect("an id");
        let by = super::store::by(bitnet_platform::time::Timestamp::now());
        store.set_plan(id, "enterprise", &by).await.expect("changed");
        let admin = member(&site, &url, (&account, "admin")).await;
        let invite = format!("/accounts/{account}/members/invite");
        let mut statuses = Vec::new();
        for number in 0..31 {
            let email = format!("guest-{number}@invites.example");
            statuses.push(admin.send_form(&invite, &[("email", &email), ("role", "viewer")]).await.status.as_u16());
        }
        assert_eq!((statuses[29], statuses[30]), (303, 429), "no relay of mails: {statuses:?}");
        assert_eq!(store.invitations(id, by.at).await.expect("it reads").len(), 30);
        let members = store.members(id).await.expect("it reads");
        let admin_id = members.iter().find(|member| member.email.starts_with("admin@")).expect("a member").person;
        let demoted = ann.send_form(&format!("/accounts/{account}/members/{admin_id}/role"), &[("role", "viewer")]).await;
        assert!(demoted.location().ends_with("said=role"), "{}", demoted.body);
        assert!(store.invitations(id, by.at).await.expect("it reads").is_empty(), "they end with the role");
        site.end().await;
    });
}

#[test]
fn nobody_joins_an_account_that_is_suspended() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@suspended.example").await;
        let bob = site.person("bob@suspended.example").await;
        let account = ann.account().await;
        let id = account.parse().expect("an id");
        let by = super::store::by(bitnet_platform::time::Timestamp::now());
        store.set_plan(id, "team", &by).await.expect("changed");
        ann.send_form(&format!("/accounts/{account}/members/invite"), &[("email", "bob@suspended.example"), ("role", "viewer")]).await;
        let link = super::visitor::link_in(&site.mail_to("bob@suspended.example", 2).await, "/invitations/");
        let status = |status| store.set_account_status(id, status, &by);
        status(bitnet_platform::ledger::AccountStatus::Suspended).await.expect("suspended");
        let refused = bob.send_form(&link, &[]).await;
        assert!(refused.status == StatusCode::UNPROCESSABLE_ENTITY && refused.body.contains("suspended"), "{}", refused.body);
        status(bitnet_platform::ledger::AccountStatus::Active).await.expect("resumed");
        assert!(bob.send_form(&link, &[]).await.location().ends_with("said=joined"), "the invitation is still there");
        site.end().await;
    });
}

#[test]
fn admin_changes_no_owner_whatever_they_were_a_moment_ago() {
    on_both(|store, url| async move {
        let site = Site::start(&url, Reach::Network).await;
        let ann = site.person("ann@owners.example").await;
        let account = ann.account().await;
        let admin = member(&site, &url, (&account, "admin")).await;
        let second = member(&site, &url, (&account, "viewer")).await;
        let id = account.parse().expect("an id");
        let person = |email: &'static str| {
            let store = &store;
            async move {
                store.members(id).await.expect("it reads").into_iter().find(|member| member.email.starts_with(email)).expect("one").person
            }
        };
        let viewer = person("viewer@").await;
        let role_of = || async { store.role_in(id, viewer).await.expect("it reads") };
        let by = super::store::by(bitnet_platform::time::Timestamp::now());
        // As a page does that was written before they became one.
        store.set_role(id, (viewer, Some(Role::Owner)), (OwnersRight::Granted, &by)).await.expect("made an owner");
        for role in [Some(Role::Viewer), None] {
            let refused = store.set_role(id, (viewer, role), (OwnersRight::Withheld, &by)).await;
            assert!(matches!(refused, Err(PlatformError::Forbidden)), "{refused:?}");
        }
        let path = format!("/accounts/{account}/members/{viewer}");
        assert_eq!(admin.send_form(&format!("{path}/role"), &[("role", "viewer")]).await.status, StatusCode::FORBIDDEN);
        assert_eq!(admin.send_form(&format!("{path}/remove"), &[]).await.status, StatusCode::FORBIDDEN);
        assert_eq!(role_of().await, Some(Role::Owner));
        assert!(second.send_form(&format!("{path}/role"), &[("role", "viewer")]).await.location().ends_with("said=role"), "an owner does");
        site.end().await;
    });
}
