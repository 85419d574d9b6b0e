//! Lists in OpenAI's shape: the first of them or those behind one, so many at a time, in either order. What is asked for is read strictly.

use axum::http::Uri;
use bitnet_server::ServerError;
use serde_json::{Value, json};

use crate::organization::query::pairs;

/// Objects of a page.
const N_DEFAULT: usize = 20;
const N_MOST: usize = 100;

/// Which page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListQuery {
    pub(super) n_max: usize,
    pub(super) after: Option<String>,
    is_descending: bool,
    /// What else was asked for.
    pub(super) rest: Vec<(String, String)>,
}

impl ListQuery {
    /// Reads it from a URL whose other parameters may be these.
    pub(super) fn read(uri: &Uri, others: &[&str]) -> Result<Self, ServerError> {
        let mut query = Self { n_max: N_DEFAULT, after: None, is_descending: false, rest: Vec::new() };
        for (name, value) in pairs(uri)? {
            match name.as_str() {
                "limit" => {
                    let wrong = || ServerError::InvalidParameter { param: "limit".into(), reason: format!("1 to {N_MOST}") };
                    query.n_max = value.parse().ok().filter(|n| (1..=N_MOST).contains(n)).ok_or_else(wrong)?;
                }
                "after" => query.after = Some(value),
                "order" => {
                    let wrong = || ServerError::InvalidParameter { param: "order".into(), reason: "asc or desc".into() };
                    query.is_descending = ["asc", "desc"].iter().position(|order| *order == value).ok_or_else(wrong)? == 1;
                }
                other if others.contains(&other) => query.rest.push((name, value)),
                _ => return Err(ServerError::UnknownParameter { param: name }),
            }
        }
        Ok(query)
    }

    /// The page of all objects, which come with the oldest first.
    pub(super) fn page(&self, mut all: Vec<Value>) -> Result<Value, ServerError> {
        if self.is_descending {
            all.reverse();
        }
        let begin = match &self.after {
            None => 0,
            Some(after) => {
                let at = all.iter().position(|object| object["id"].as_str() == Some(after));
                let wrong = || ServerError::InvalidParameter { param: "after".into(), reason: "expected an id of this list".into() };
                at.ok_or_else(wrong)? + 1
            }
        };
        let has_more = all.len() > begin + self.n_max;
        Ok(list(all.into_iter().skip(begin).take(self.n_max).collect(), has_more))
    }
}

/// A page as it is.
pub(super) fn list(data: Vec<Value>, has_more: bool) -> Value {
    let id = |object: Option<&Value>| object.map_or(Value::Null, |object| object["id"].clone());
    let (first_id, last_id) = (id(data.first()), id(data.last()));
    json!({ "object": "list", "data": data, "first_id": first_id, "last_id": last_id, "has_more": has_more })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_have_each_object_once_in_either_order() {
        let all = || (0..7).map(|n| json!({ "id": format!("x{n}") })).collect::<Vec<_>>();
        for (order, first) in [("asc", "x0"), ("desc", "x6")] {
            let (mut seen, mut after) = (Vec::new(), String::new());
            loop {
                let uri = format!("/l?limit=3&order={order}{after}").parse().expect("a URL");
                let page = ListQuery::read(&uri, &[]).expect("valid").page(all()).expect("a page");
                seen.extend(
                    page["data"].as_array().expect("a list").iter().map(|object| object["id"].as_str().expect("an id").to_string()),
                );
                if page["has_more"] == false {
                    break;
                }
                after = format!("&after={}", page["last_id"].as_str().expect("an id"));
            }
            assert_eq!((seen.len(), seen[0].as_str()), (7, first), "{seen:?}");
        }
    }

    #[test]
    fn wrong_parameter_of_a_list_is_named() {
        for (query, name) in
            [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("before=x", "before")]
        {
            let refused = ListQuery::read(&format!("/l?{query}").parse().expect("a URL"), &["emails"]).expect_err("refused");
            assert!(refused.to_string().contains(name), "{query}: {refused}");
        }
        let behind = ListQuery::read(&"/l?after=x9".parse().expect("a URL"), &[]).expect("valid").page(vec![json!({ "id": "x1" })]);
        assert!(behind.is_err(), "nobody has that id");
    }
}
