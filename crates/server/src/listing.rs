//! What a list of kept objects is asked for in its URL, and the page of it that is the answer: OpenAI's `after`, `limit` and `order`.

use axum::extract::Query;

use crate::error::ServerError;
use crate::limits;

/// The names and values of a URL's query.
pub(crate) type QueryPairs = Query<Vec<(String, String)>>;

/// What all lists read.
pub(crate) const PAGE_QUERY: &[&str] = &["after", "limit", "order"];

/// Which end of a list comes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    Ascending,
    #[default]
    Descending,
}

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    after: Option<String>,
    limit: Option<usize>,
    order: Order,
    /// Only files of this purpose.
    pub(crate) purpose: Option<String>,
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub(crate) data: Vec<T>,
    pub(crate) first_id: Option<String>,
    pub(crate) last_id: Option<String>,
    pub(crate) has_more: bool,
}

impl Listing {
    /// Reads a URL's query; names beyond `known` are refused.
    pub(crate) fn read(query: Vec<(String, String)>, known: &[&str]) -> Result<Self, ServerError> {
        let mut listing = Self::default();
        for (name, value) in query {
            if !known.contains(&name.as_str()) {
                return Err(ServerError::UnknownParameter { param: name.chars().take(100).collect() });
            }
            match name.as_str() {
                "after" => listing.after = Some(value),
                "limit" => listing.limit = Some(read_limit(&value)?),
                "order" => listing.order = read_order(&value)?,
                "purpose" => listing.purpose = Some(value),
                _ => return Err(ServerError::unsupported(name, "there is nothing to include")),
            }
        }
        Ok(listing)
    }

    /// The page that was asked for, of all objects, newest first.
    pub(crate) fn page<T>(&self, newest_first: Vec<T>, id_of: impl Fn(&T) -> String) -> Result<Page<T>, ServerError> {
        let mut all = newest_first;
        if self.order == Order::Ascending {
            all.reverse();
        }
        if let Some(after) = &self.after {
            let place = all.iter().position(|one| id_of(one) == *after);
            let place = place.ok_or_else(|| ServerError::invalid("after", "no id of this list"))?;
            all.drain(..=place);
        }
        let limit = self.limit.unwrap_or(limits::N_LISTED_MAX);
        let has_more = all.len() > limit;
        all.truncate(limit);
        Ok(Page { first_id: all.first().map(&id_of), last_id: all.last().map(&id_of), data: all, has_more })
    }
}

fn read_limit(value: &str) -> Result<usize, ServerError> {
    let limit = value.parse().ok().filter(|limit| (1..=limits::N_LISTED_MAX).contains(limit));
    limit.ok_or_else(|| ServerError::invalid("limit", format!("not a number in 1..={}", limits::N_LISTED_MAX)))
}

fn read_order(value: &str) -> Result<Order, ServerError> {
    match value {
        "asc" => Ok(Order::Ascending),
        "desc" => Ok(Order::Descending),
        _ => Err(ServerError::invalid("order", "`asc` or `desc`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(query: &str) -> Result<(Vec<u32>, bool), String> {
        let uri = format!("/v1/files?{query}").parse().expect("a URL");
        let Query(pairs) = QueryPairs::try_from_uri(&uri).expect("pairs");
        let listing = Listing::read(pairs, PAGE_QUERY).map_err(|error| error.to_string())?;
        let page = listing.page(vec![4, 3, 2, 1], u32::to_string).map_err(|error| error.to_string())?;
        assert_eq!(page.first_id, page.data.first().map(u32::to_string));
        assert_eq!(page.last_id, page.data.last().map(u32::to_string));
        Ok((page.data, page.has_more))
    }

    #[test]
    fn pages_one_after_another_give_the_whole_list() {
        assert_eq!(page(""), Ok((vec![4, 3, 2, 1], false)));
        assert_eq!(page("limit=2"), Ok((vec![4, 3], true)));
        assert_eq!(page("limit=2&after=3"), Ok((vec![2, 1], false)));
        assert_eq!(page("order=asc&limit=3&after=1"), Ok((vec![2, 3, 4], false)));
        assert_eq!(page("after=1"), Ok((vec![], false)));
    }

    #[test]
    fn wrong_query_is_refused_by_name() {
        for (query, name) in
            [("limit=0", "limit"), ("limit=x", "limit"), ("order=up", "order"), ("after=9", "after"), ("before=1", "before")]
        {
            let refusal = page(query).expect_err(query);
            assert!(refusal.contains(&format!("`{name}`")), "{query}: {refusal}");
        }
    }
}
