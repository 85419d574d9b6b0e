//! Ten thousand lives of the ledger, on a store that fails where it hurts: requests that stream or not, clients that leave at any
//! token, events that come twice, late, in disorder or forged, months and prices that change meanwhile, and a world that ends before
//! or after any write; months are closed meanwhile. At the end of each life every token and every micro is accounted for, on an invoice, too (reliability: C, rows 9 and 10).

mod books;
mod invoices;
mod life;
mod memory_store;
mod oracle;
mod seen;
mod world;

use life::Life;
use memory_store::Fault;
use seen::Seen;

const N_SEEDS: u64 = 10_000;

/// An error planted in the tables, which the end must find.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Damage {
    ChargeOff,
    EntryGone,
    GrantOff,
    LineOff,
    RollupOff,
    TokenOff,
}

impl Damage {
    pub(crate) const ALL: [Self; 6] = [Self::ChargeOff, Self::EntryGone, Self::GrantOff, Self::LineOff, Self::RollupOff, Self::TokenOff];
}

#[test]
fn ledger_over_ten_thousand_lives_loses_nothing_and_bills_nothing_twice() {
    let mut seen = Seen::default();
    for seed in 0..N_SEEDS {
        let mut life = Life::begin(seed);
        // In a third of the lives writes fail here and there; in another third each failure ends the process.
        life.live(120);
        life.end();
        seen.add(&life.seen);
    }
    println!("{seen:?}");
    assert!(seen.all_happened(), "{seen:?}");
}

#[test]
fn crash_at_every_write_of_a_life_changes_no_total() {
    for seed in [3, 5, 8, 13, 21, 34, 55, 89] {
        let n_writes = {
            let mut life = Life::without_faults(seed);
            life.live(120);
            life.end();
            life.n_writes()
        };
        for write in 1..=n_writes {
            for fault in [Fault::Before, Fault::After] {
                let mut life = Life::with_crash_at(seed, write, fault);
                life.live(120);
                life.end();
            }
        }
    }
}

#[test]
fn ledger_that_books_a_planted_error_is_caught() {
    for damage in Damage::ALL {
        let caught = std::panic::catch_unwind(|| {
            for seed in 0..20 {
                let mut life = Life::without_faults(seed);
                life.live(120);
                life.damage(damage);
                life.end();
            }
        });
        assert!(caught.is_err(), "{damage:?} went unnoticed");
    }
}
