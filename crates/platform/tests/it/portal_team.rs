//! Who shares an account and does not wish it well: what roles, keys, members and invitations let them do, in what is sent and not only
//! in which route.

use axum::http::StatusCode;
use bitnet_platform::directory::KeyAccess;
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
