//! Who is served next. Tenants that were given fewer tokens come first, so that many requests of one do not delay another's few
//! (virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, §3). A priority is a head start
//! of a fixed number of tokens, and waiting makes up for it: whoever waits is overtaken only by those who come within a bounded
//! amount of service, so nobody starves. There is no clock: age is counted in tokens served to all.

use std::collections::{BTreeSet, HashMap};

use crate::limits::N_IDLE_TENANTS_MAX;
use crate::request::{Priority, TenantSalt};
use crate::sequence::SequenceId;

/// Tokens that a step of priority is worth.
const PRIORITY_TOKENS: u64 = 4096;
/// Tokens served to all that make up for one token of a head start.
const AGEING: u64 = 4;

#[derive(Default)]
struct Account {
    /// Tokens given to it, and what it was credited with when it came back.
    n_tokens: u64,
    n_sequences: usize,
    /// Those of its sequences that wait, by ticket.
    line: BTreeSet<(Ticket, SequenceId)>,
}

/// What every tenant was given, and who waits.
#[derive(Default)]
pub(crate) struct FairShare {
    accounts: HashMap<TenantSalt, Account>,
    /// Accounts with sequences.
    n_busy: usize,
    n_waiting: usize,
    /// Tokens given to all.
    n_tokens: u64,
    /// The least that a tenant with sequences had been given, when last looked at.
    floor: u64,
}

/// A sequence's own part of its place in line: when it came, in tokens served until then, and its priority. Smaller is sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(u64);

impl FairShare {
    /// A sequence of the tenant comes.
    pub(crate) fn enter(&mut self, tenant: TenantSalt, priority: Priority) -> Ticket {
        let busy = self.accounts.values().filter(|account| account.n_sequences > 0);
        self.floor = self.floor.max(busy.map(|account| account.n_tokens).min().unwrap_or(0));
        let account = self.accounts.entry(tenant).or_default();
        if account.n_sequences == 0 {
            // Having asked for nothing earns nothing.
            account.n_tokens = account.n_tokens.max(self.floor);
            self.n_busy += 1;
        }
        account.n_sequences += 1;
        let handicap = match priority {
            Priority::High => 0,
            Priority::Normal => PRIORITY_TOKENS,
            Priority::Low => 2 * PRIORITY_TOKENS,
        };
        Ticket(handicap + self.n_tokens / AGEING)
    }

    /// A sequence of the tenant is gone.
    pub(crate) fn leave(&mut self, tenant: TenantSalt) {
        let Some(account) = self.accounts.get_mut(&tenant) else { return };
        assert!(account.n_sequences > 0, "a tenant's sequence leaves once");
        account.n_sequences -= 1;
        if account.n_sequences > 0 {
            return;
        }
        self.n_busy -= 1;
        if self.accounts.len() - self.n_busy > N_IDLE_TENANTS_MAX {
            self.accounts.retain(|_, account| account.n_sequences > 0);
        }
    }

    /// A sequence waits that has entered.
    pub(crate) fn wait(&mut self, tenant: TenantSalt, place: (Ticket, SequenceId)) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            self.n_waiting += usize::from(account.line.insert(place));
        }
    }

    /// A sequence does not wait any more, if it did.
    pub(crate) fn stop_waiting(&mut self, tenant: TenantSalt, place: (Ticket, SequenceId)) {
        if let Some(account) = self.accounts.get_mut(&tenant) {
            self.n_waiting -= usize::from(account.line.remove(&place));
        }
    }

    /// Sequences that wait.
    pub(crate) fn n_waiting(&self) -> usize {
        self.n_waiting
    }

    /// Whose turn it is.
    pub(crate) fn next(&self) -> Option<SequenceId> {
        if self.n_waiting == 0 {
            return None;
        }
        let firsts = self.accounts.values().filter_map(|account| {
            let &(ticket, id) = account.line.first()?;
            Some((account.n_tokens + ticket.0, id))
        });
        firsts.min().map(|(_, id)| id)
    }

    /// The tenant was given `n_tokens`.
    pub(crate) fn charge(&mut self, tenant: TenantSalt, n_tokens: usize) {
        self.n_tokens += n_tokens as u64;
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.n_tokens += n_tokens as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::RequestId;

    fn tenant(name: u32) -> TenantSalt {
        let mut salt = [0; 32];
        salt[..4].copy_from_slice(&name.to_le_bytes());
        TenantSalt(salt)
    }

    /// Serves one request of 100 tokens after another, the smallest key first, while `arrivals` says who comes. Returns when each of
    /// the `marked` was served.
    fn serve(n_steps: u32, marked: &[(u32, Priority)], arrivals: impl Fn(u32) -> Vec<(u32, Priority)>) -> Vec<u32> {
        let (mut fair, mut n_entered) = (FairShare::default(), 0);
        let mut waiting = HashMap::new();
        let mut served = vec![n_steps; marked.len()];
        for step in 0..n_steps {
            let new = if step == 0 { [arrivals(0), marked.to_vec()].concat() } else { arrivals(step) };
            for (name, priority) in new {
                n_entered += 1;
                let id = SequenceId { request: RequestId(n_entered), choice: 0 };
                let ticket = fair.enter(tenant(name), priority);
                fair.wait(tenant(name), (ticket, id));
                waiting.insert(id, (name, priority, ticket));
            }
            let Some(next) = fair.next() else { continue };
            let (name, priority, ticket) = waiting.remove(&next).expect("it waits");
            fair.stop_waiting(tenant(name), (ticket, next));
            fair.charge(tenant(name), 100);
            fair.leave(tenant(name));
            if let Some(index) = marked.iter().position(|&mark| mark == (name, priority)) {
                served[index] = served[index].min(step);
            }
        }
        assert_eq!(fair.n_waiting(), waiting.len());
        served
    }

    #[test]
    fn flood_of_one_tenant_does_not_delay_another() {
        let flood = |step: u32| if step == 0 { vec![(1, Priority::Normal); 500] } else { vec![] };
        assert!(serve(600, &[(2, Priority::Normal)], flood)[0] <= 2);
    }

    #[test]
    fn low_priority_is_served_under_an_endless_stream_of_others() {
        // Two come for each that is served; of one tenant, and of ever new ones.
        let same = |_: u32| vec![(1, Priority::High), (1, Priority::Normal)];
        let fresh = |step: u32| vec![(10 + 2 * step, Priority::High), (11 + 2 * step, Priority::High)];
        for served in [serve(2000, &[(3, Priority::Low)], same), serve(2000, &[(3, Priority::Low)], fresh)] {
            assert!(served[0] < 1000, "{served:?}");
        }
    }

    #[test]
    fn high_priority_goes_before_low_ones_that_came_first() {
        let low = |step: u32| if step == 0 { vec![(1, Priority::Low); 20] } else { vec![] };
        assert_eq!(serve(30, &[(2, Priority::High)], low), [0]);
    }

    #[test]
    fn idle_tenants_are_forgotten_within_bounds() {
        let mut fair = FairShare::default();
        for name in 0..3 * N_IDLE_TENANTS_MAX as u32 {
            fair.enter(tenant(name), Priority::Normal);
            fair.leave(tenant(name));
            assert!(fair.accounts.len() <= N_IDLE_TENANTS_MAX + 1);
        }
    }
}
