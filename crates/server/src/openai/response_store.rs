//! Responses that are kept, so that a later request can go on from one. In memory and bounded: at the bound the oldest go, and a
//! request that names one of those is told so, never answered without it. Whoever did not make a response does not see it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use crate::conversation::Turn;
use crate::error::ServerError;
use crate::limits;

/// A response with what it answered.
pub(crate) struct Kept {
    /// Who made it.
    pub(crate) owner: String,
    pub(crate) previous: Option<String>,
    /// The object as it was given, and the items that were its input: as JSON text, whose size is known.
    pub(crate) object: String,
    pub(crate) input_items: String,
    /// What its input and output add to the conversation.
    pub(crate) turns: Vec<Turn>,
}

#[derive(Default)]
struct Shelf {
    by_id: HashMap<String, (Arc<Kept>, usize)>,
    /// Oldest first; ids of deleted responses may remain until their turn.
    order: VecDeque<String>,
    size_bytes: usize,
}

/// See the module.
#[derive(Default)]
pub(crate) struct ResponseStore {
    shelf: Mutex<Shelf>,
}

impl ResponseStore {
    /// Keeps a response, at the cost of the oldest.
    pub(crate) fn insert(&self, id: String, kept: Kept) {
        let size_bytes = size_of(&kept);
        if size_bytes > limits::RESPONSES_BYTES_MAX {
            return;
        }
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        while shelf.size_bytes + size_bytes > limits::RESPONSES_BYTES_MAX {
            let Some(oldest) = shelf.order.pop_front() else { break };
            shelf.remove(&oldest);
        }
        shelf.size_bytes += size_bytes;
        shelf.order.push_back(id.clone());
        shelf.by_id.insert(id, (Arc::new(kept), size_bytes));
    }

    /// One of the caller's own.
    pub(crate) fn get(&self, id: &str, owner: &str) -> Result<Arc<Kept>, ServerError> {
        let shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        match shelf.by_id.get(id) {
            Some((kept, _)) if kept.owner == owner => Ok(kept.clone()),
            _ => Err(unknown(id)),
        }
    }

    /// Forgets one of the caller's own.
    pub(crate) fn delete(&self, id: &str, owner: &str) -> Result<(), ServerError> {
        self.get(id, owner)?;
        let mut shelf = self.shelf.lock().unwrap_or_else(PoisonError::into_inner);
        shelf.remove(id);
        shelf.order.retain(|other| other != id);
        Ok(())
    }

    /// All turns up to and with this response.
    pub(crate) fn turns_until(&self, id: &str, owner: &str) -> Result<Vec<Turn>, ServerError> {
        let mut chain = Vec::new();
        let mut next = Some(id.to_string());
        while let Some(id) = next {
            if chain.len() == limits::N_RESPONSE_ANCESTORS_MAX {
                let reason = format!("the conversation has more than {} responses", limits::N_RESPONSE_ANCESTORS_MAX);
                return Err(ServerError::invalid("previous_response_id", reason));
            }
            let kept = self.get(&id, owner)?;
            next = kept.previous.clone();
            chain.push(kept);
        }
        Ok(chain.iter().rev().flat_map(|kept| kept.turns.iter().cloned()).collect())
    }
}

impl Shelf {
    fn remove(&mut self, id: &str) {
        if let Some((_, size_bytes)) = self.by_id.remove(id) {
            self.size_bytes -= size_bytes;
        }
    }
}

fn unknown(id: &str) -> ServerError {
    ServerError::UnknownObject { kind: "response", id: id.chars().take(100).collect() }
}

/// About what a response takes.
fn size_of(kept: &Kept) -> usize {
    let turn_bytes = |turn: &Turn| match turn {
        Turn::System(text) | Turn::User(text) | Turn::ToolResult { text, .. } => text.len(),
        Turn::Assistant { text, calls } => text.len() + calls.iter().map(|call| call.arguments.len() + call.name.len()).sum::<usize>(),
    };
    let turns: usize = kept.turns.iter().map(|turn| 64 + turn_bytes(turn)).sum();
    512 + turns + kept.object.len() + kept.input_items.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(owner: &str, previous: Option<&str>, text: &str) -> Kept {
        let turns = vec![Turn::User(text.into())];
        let previous = previous.map(Into::into);
        Kept { owner: owner.into(), previous, object: "{}".into(), input_items: "{}".into(), turns }
    }

    #[test]
    fn chain_of_responses_gives_all_turns_in_order() {
        let store = ResponseStore::default();
        store.insert("a".into(), kept("ann", None, "1"));
        store.insert("b".into(), kept("ann", Some("a"), "2"));
        assert_eq!(store.turns_until("b", "ann").expect("kept"), [Turn::User("1".into()), Turn::User("2".into())]);
        assert!(store.turns_until("b", "bob").is_err(), "another's");
        store.delete("a", "ann").expect("kept");
        assert!(matches!(store.turns_until("b", "ann"), Err(ServerError::UnknownObject { .. })), "never answered without a part");
    }

    #[test]
    fn oldest_response_goes_when_the_bound_is_reached() {
        let store = ResponseStore::default();
        let text = "x".repeat(limits::RESPONSES_BYTES_MAX / 10);
        for index in 0..10 {
            let kept = kept("ann", None, "short");
            // Whatever it is that is long.
            let kept = if index % 2 == 0 { Kept { object: text.clone(), ..kept } } else { Kept { input_items: text.clone(), ..kept } };
            store.insert(index.to_string(), kept);
        }
        assert!(store.get("9", "ann").is_ok() && store.get("0", "ann").is_err());
        let shelf = store.shelf.lock().unwrap();
        assert!(shelf.size_bytes <= limits::RESPONSES_BYTES_MAX && shelf.by_id.len() == shelf.order.len());
    }
}
