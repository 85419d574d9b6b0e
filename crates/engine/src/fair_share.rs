//! Who is served next. Tenants that were given fewer tokens come first, so that many requests of one do not delay another's few
//! (virtual token counters: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, §3). A priority is a head start
//! of a fixed number of tokens, and waiting makes up for it: whoever waits is overtaken only by those who come within a bounded
//! amount of service, so nobody starves. There is no clock: age is counted in tokens served to all.

use std::collections::HashMap;

use crate::limits::N_IDLE_TENANTS_MAX;
use crate::request::{Priority, TenantSalt};

/// Tokens that a step of priority is worth.
const PRIORITY_TOKENS: u64 = 4096;
/// Tokens served to all that make up for one token of a head start.
const AGEING: u64 = 4;

#[derive(Default)]
struct Account {
    /// Tokens given to it, and what it was credited with when it came back.
    n_tokens: u64,
    n_requests: usize,
}

/// What every tenant was given.
#[derive(Default)]
pub(crate) struct FairShare {
    accounts: HashMap<TenantSalt, Account>,
    /// Accounts with requests.
    n_busy: usize,
    /// Tokens given to all.
    n_tokens: u64,
    /// The least that a tenant with requests had been given, when last looked at.
    floor: u64,
}

/// When a request came, in tokens served until then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival(u64);

impl FairShare {
    /// A sequence of the tenant begins to wait.
    pub(crate) fn enter(&mut self, tenant: TenantSalt) -> Arrival {
        let busy = self.accounts.values().filter(|account| account.n_requests > 0);
        self.floor = self.floor.max(busy.map(|account| account.n_tokens).min().unwrap_or(0));
        let account = self.accounts.entry(tenant).or_default();
        if account.n_requests == 0 {
            // Having asked for nothing earns nothing.
            account.n_tokens = account.n_tokens.max(self.floor);
            self.n_busy += 1;
        }
        account.n_requests += 1;
        Arrival(self.n_tokens)
    }

    /// A sequence of the tenant is gone.
    pub(crate) fn leave(&mut self, tenant: TenantSalt) {
        let Some(account) = self.accounts.get_mut(&tenant) else { return };
        assert!(account.n_requests > 0, "a tenant's sequence leaves once");
        account.n_requests -= 1;
        if account.n_requests > 0 {
            return;
        }
        self.n_busy -= 1;
        if self.accounts.len() - self.n_busy > N_IDLE_TENANTS_MAX {
            self.accounts.retain(|_, account| account.n_requests > 0);
        }
    }

    /// The tenant was given `n_tokens`.
    pub(crate) fn charge(&mut self, tenant: TenantSalt, n_tokens: usize) {
        self.n_tokens += n_tokens as u64;
        if let Some(account) = self.accounts.get_mut(&tenant) {
            account.n_tokens += n_tokens as u64;
        }
    }

    /// The smaller, the sooner.
    pub(crate) fn key(&self, tenant: TenantSalt, priority: Priority, arrival: Arrival) -> u64 {
        let head_start = match priority {
            Priority::High => 0,
            Priority::Normal => PRIORITY_TOKENS,
            Priority::Low => 2 * PRIORITY_TOKENS,
        };
        self.accounts.get(&tenant).map_or(0, |account| account.n_tokens) + head_start + arrival.0 / AGEING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: u32) -> TenantSalt {
        let mut salt = [0; 32];
        salt[..4].copy_from_slice(&name.to_le_bytes());
        TenantSalt(salt)
    }

    /// Serves one request of 100 tokens after another, the smallest key first, while `arrivals` says who comes. Returns when each of
    /// the `marked` was served.
    fn serve(n_steps: u32, marked: &[(u32, Priority)], arrivals: impl Fn(u32) -> Vec<(u32, Priority)>) -> Vec<u32> {
        let mut fair = FairShare::default();
        let mut waiting = Vec::new();
        let mut served = vec![n_steps; marked.len()];
        for step in 0..n_steps {
            let new = if step == 0 { [arrivals(0), marked.to_vec()].concat() } else { arrivals(step) };
            for (name, priority) in new {
                waiting.push((name, priority, fair.enter(tenant(name))));
            }
            let next = (0..waiting.len()).min_by_key(|&index| {
                let (name, priority, arrival) = waiting[index];
                (fair.key(tenant(name), priority, arrival), index)
            });
            let Some(next) = next else { continue };
            let (name, priority, _) = waiting.remove(next);
            fair.charge(tenant(name), 100);
            fair.leave(tenant(name));
            if let Some(index) = marked.iter().position(|&mark| mark == (name, priority)) {
                served[index] = served[index].min(step);
            }
        }
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
            fair.enter(tenant(name));
            fair.leave(tenant(name));
            assert!(fair.accounts.len() <= N_IDLE_TENANTS_MAX + 1);
        }
    }
}
