//! The sampler against its definition: statistics of its draws, each filter as a property, each penalty by its formula.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn tokens(ids: &[u32]) -> Vec<TokenId> {
    ids.iter().copied().map(TokenId).collect()
}

/// Probabilities of a plain softmax, in f64.
fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit - largest) / f64::from(temperature)).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

/// χ² of 20,000 draws against the expected probabilities.
fn chi_square(params: SamplingParams, logits: &[f32], expected: &[f64]) -> f64 {
    const N_DRAWS: usize = 20_000;
    let mut sampler = Sampler::new(params).unwrap();
    let mut counts = vec![0usize; logits.len()];
    for _ in 0..N_DRAWS {
        counts[sampler.sample(&mut logits.to_vec(), &[]).unwrap().index()] += 1;
    }
    let terms = counts.iter().zip(expected).map(|(&count, &probability)| {
        let expected = probability * N_DRAWS as f64;
        if expected == 0.0 {
            assert_eq!(count, 0, "an impossible token was drawn");
            return 0.0;
        }
        (count as f64 - expected).powi(2) / expected
    });
    terms.sum()
}

const LOGITS: [f32; 8] = [0.3, -1.2, 2.0, 0.0, 1.1, 1.1, -0.4, 0.9];
/// 99.9 % point of χ² with 7 degrees of freedom.
const CHI_SQUARE_BOUND: f64 = 24.3;

#[test]
fn draws_follow_the_softmax() {
    for (seed, temperature) in [(1, 1.0), (2, 0.5), (3, 2.0)] {
        let params = SamplingParams { temperature, seed, ..SamplingParams::default() };
        let chi_square = chi_square(params, &LOGITS, &softmax(&LOGITS, temperature));
        assert!(chi_square < CHI_SQUARE_BOUND, "temperature {temperature}: {chi_square}");
    }
}

#[test]
fn draws_with_filters_follow_the_renormalised_softmax() {
    let renormalised = |kept: &[usize]| {
        let all = softmax(&LOGITS, 1.0);
        let total: f64 = kept.iter().map(|&index| all[index]).sum();
        (0..8).map(|index| if kept.contains(&index) { all[index] / total } else { 0.0 }).collect::<Vec<_>>()
    };
    let plain = SamplingParams { seed: 7, ..SamplingParams::default() };
    let top_k = SamplingParams { top_k: Some(3), ..plain.clone() };
    assert!(chi_square(top_k, &LOGITS, &renormalised(&[2, 4, 5])) < CHI_SQUARE_BOUND);
    // 0.386, 0.157, 0.157, 0.128, …: 0.65 needs three.
    let top_p = SamplingParams { top_p: 0.65, ..plain.clone() };
    assert!(chi_square(top_p, &LOGITS, &renormalised(&[2, 4, 5])) < CHI_SQUARE_BOUND);
    // exp(0.9 − 2) = 0.333, exp(0.3 − 2) = 0.183.
    let min_p = SamplingParams { min_p: 0.3, ..plain };
    assert!(chi_square(min_p, &LOGITS, &renormalised(&[2, 4, 5, 7])) < CHI_SQUARE_BOUND);
}

#[test]
fn biased_sampler_fails_the_chi_square_gate() {
    let uniform = vec![1.0 / 8.0; 8];
    assert!(chi_square(SamplingParams::default(), &LOGITS, &uniform) > CHI_SQUARE_BOUND);
}

#[test]
fn greedy_takes_the_largest_logit_and_the_lowest_id() {
    let mut sampler = Sampler::new(SamplingParams::greedy()).unwrap();
    assert_eq!(sampler.sample(&mut [1.0, 3.0, 3.0, 2.0], &[]).unwrap(), TokenId(1));
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, -3.0], &[]).unwrap(), TokenId(1));
}

#[test]
fn logits_that_are_not_numbers_are_errors() {
    for params in [SamplingParams::greedy(), SamplingParams::default()] {
        let mut sampler = Sampler::new(params).unwrap();
        assert!(matches!(sampler.sample(&mut [0.0, f32::NAN], &[]), Err(SamplerError::NotFinite { token: TokenId(1), .. })));
        assert!(matches!(sampler.sample(&mut [f32::INFINITY, 0.0], &[]), Err(SamplerError::NotFinite { token: TokenId(0), .. })));
        assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY; 3], &[]), Err(SamplerError::NoCandidate));
        assert_eq!(sampler.sample(&mut [], &[]), Err(SamplerError::NoLogits));
    }
}

#[test]
fn parameter_out_of_range_is_named() {
    let plain = SamplingParams::default;
    let cases = [
        ("temperature", SamplingParams { temperature: -0.1, ..plain() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..plain() }),
        ("temperature", SamplingParams { temperature: f32::INFINITY, ..plain() }),
        ("top_k", SamplingParams { top_k: Some(0), ..plain() }),
        ("top_p", SamplingParams { top_p: 0.0, ..plain() }),
        ("top_p", SamplingParams { top_p: f32::NAN, ..plain() }),
        ("min_p", SamplingParams { min_p: 1.1, ..plain() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..plain() }),
        ("presence_penalty", SamplingParams { presence_penalty: 2.1, ..plain() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: f32::NAN, ..plain() }),
    ];
    for (expected, params) in cases {
        assert!(matches!(Sampler::new(params), Err(SamplerError::Parameter { name, .. }) if name == expected), "{expected}");
    }
}

#[test]
fn penalties_follow_their_formulas() {
    let params = SamplingParams {
        temperature: 0.0,
        repetition_penalty: 2.0,
        presence_penalty: 0.5,
        frequency_penalty: 0.25,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params).unwrap().with_prompt(2);
    let mut logits = [4.0, -4.0, 4.0, 4.0, -1.0];
    // Prompt 0, 1; generated 1, 2, 2; and an id that the model does not have.
    sampler.sample(&mut logits, &tokens(&[0, 1, 1, 2, 2, 99])).unwrap();
    assert_eq!(logits, [2.0, -8.0 - 0.25 - 0.5, 2.0 - 0.5 - 0.5, 4.0, -1.0]);
    let mut again = [4.0, -4.0, 4.0, 4.0, -1.0];
    sampler.sample(&mut again, &tokens(&[0, 1, 1, 2, 2, 99])).unwrap();
    assert_eq!(logits, again, "nothing is left over from step to step");
}

#[test]
fn same_seed_draws_the_same_tokens_and_another_seed_others() {
    let draw = |seed| {
        let mut sampler = Sampler::new(SamplingParams { seed, ..SamplingParams::default() }).unwrap();
        (0..64).map(|_| sampler.sample(&mut LOGITS.to_vec(), &[]).unwrap().0).collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
    // Pinned: a change here is a change of every user's seeded outputs.
    assert_eq!(draw(42)[..12], PINNED_DRAWS);
}

const PINNED_DRAWS: [u32; 12] = [2, 2, 3, 2, 5, 0, 3, 2, 2, 5, 4, 5];

fn selected(params: &SamplingParams, logits: &[f32]) -> BTreeSet<TokenId> {
    let mut candidates = Candidates::default();
    candidates.select(params, logits, logits[largest(logits).unwrap().index()]);
    candidates.tokens().into_iter().collect()
}

proptest! {
    #[test]
    fn top_k_keeps_the_k_largest(logits in prop::collection::vec(-8.0f32..8.0, 1..600), k in 1usize..40) {
        let params = SamplingParams { top_k: Some(k), ..SamplingParams::default() };
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&left, &right| logits[right].total_cmp(&logits[left]).then(left.cmp(&right)));
        let expected: BTreeSet<TokenId> = order.iter().take(k).map(|&index| TokenId(index as u32)).collect();
        prop_assert_eq!(selected(&params, &logits), expected);
    }

    #[test]
    fn top_p_keeps_the_shortest_prefix_with_the_mass(logits in prop::collection::vec(-4.0f32..4.0, 1..3000), top_p in 0.01f32..0.999) {
        let kept = selected(&SamplingParams { top_p, ..SamplingParams::default() }, &logits);
        let probabilities = softmax(&logits, 1.0);
        let mass: f64 = kept.iter().map(|token| probabilities[token.index()]).sum();
        let least = kept.iter().map(|token| probabilities[token.index()]).fold(1.0, f64::min);
        prop_assert!(mass >= f64::from(top_p) - 1e-5);
        prop_assert!(mass - least < f64::from(top_p) + 1e-5);
        let most_left_out = (0..logits.len()).filter(|&index| !kept.contains(&TokenId(index as u32))).map(|index| probabilities[index]);
        prop_assert!(most_left_out.fold(0.0, f64::max) <= least + 1e-12);
    }

    #[test]
    fn min_p_keeps_what_is_likely_enough(logits in prop::collection::vec(-8.0f32..8.0, 1..300), min_p in 0.001f32..1.0) {
        let kept = selected(&SamplingParams { min_p, ..SamplingParams::default() }, &logits);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for (index, &logit) in logits.iter().enumerate() {
            let share = f64::from(logit - largest).exp();
            if (share - f64::from(min_p)).abs() > 1e-5 {
                prop_assert_eq!(kept.contains(&TokenId(index as u32)), share > f64::from(min_p));
            }
        }
    }

    #[test]
    fn any_valid_parameters_draw_a_token_that_is_not_masked(
        logits in prop::collection::vec(prop_oneof![4 => -30.0f32..30.0, 1 => Just(f32::NEG_INFINITY)], 1..200),
        (temperature, top_k, top_p, min_p) in (0.0f32..100.0, prop::option::of(1usize..300), 0.0001f32..=1.0, 0.0f32..=1.0),
        (repetition_penalty, presence_penalty, frequency_penalty) in (0.01f32..10.0, -2.0f32..=2.0, -2.0f32..=2.0),
        history in prop::collection::vec(0u32..400, 0..40),
        seed: u64,
    ) {
        let params = SamplingParams { temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, seed };
        let drawn = Sampler::new(params).unwrap().sample(&mut logits.clone(), &tokens(&history));
        match drawn {
            Ok(token) => prop_assert!(logits[token.index()] > f32::NEG_INFINITY),
            Err(error) => {
                prop_assert_eq!(error, SamplerError::NoCandidate);
                prop_assert!(logits.iter().all(|&logit| logit == f32::NEG_INFINITY));
            }
        }
    }
}

#[test]
fn logits_outside_the_reach_change_no_draw() {
    let plain = SamplingParams { seed: 5, temperature: 0.9, ..SamplingParams::default() };
    let penalised =
        SamplingParams { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.2, top_k: Some(5), ..plain.clone() };
    let cases = [
        SamplingParams::greedy(),
        SamplingParams { repetition_penalty: 1.4, ..SamplingParams::greedy() },
        SamplingParams { top_k: Some(7), ..plain.clone() },
        SamplingParams { top_k: Some(7), top_p: 0.8, ..plain.clone() },
        SamplingParams { top_k: Some(7), min_p: 0.2, ..plain.clone() },
        SamplingParams { min_p: 0.1, ..plain.clone() },
        penalised,
    ];
    for params in cases {
        let [mut all, mut reached] = [(); 2].map(|()| Sampler::new(params.clone()).expect("valid").with_prompt(2));
        let mut history = vec![TokenId(3), TokenId(9)];
        for step in 0..60u32 {
            let logits: Vec<f32> = (0..300u32).map(|id| ((id * 7919 + step * 104_729) % 1009) as f32 / 150.0).collect();
            let best = reached.reach(history.len()).expect("bounded");
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let least = sorted[best.n - 1].min(sorted[0] - best.within);
            let mut partial: Vec<f32> = logits.iter().map(|&logit| if logit >= least { logit } else { f32::NEG_INFINITY }).collect();
            let token = all.sample(&mut logits.clone(), &history).expect("finite");
            assert_eq!(reached.sample(&mut partial, &history), Ok(token), "{params:?} at {step}");
            history.push(token);
        }
    }
    let whole = [
        SamplingParams { top_p: 0.9, min_p: 0.1, ..plain.clone() },
        SamplingParams { presence_penalty: -1.0, ..SamplingParams::greedy() },
        plain,
    ];
    assert!(whole.into_iter().all(|params| Sampler::new(params).expect("valid").reach(10).is_none()));
}
