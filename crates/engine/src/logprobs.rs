//! Log-probabilities of a row of logits: all of it, in f64, in index order, with `exp` from `libm`, so that the same row gives the
//! same bits in every batch and on every machine.

use bitnet_model::TokenId;

use crate::request::TokenLogprob;

/// The log-probability of `token_id` and the `n_top` most likely tokens (the lower id first among equals) of `logits`, `[n_vocab]`.
pub(crate) fn token_logprob(logits: &[f32], token_id: TokenId, n_top: usize) -> TokenLogprob {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| libm::exp(f64::from(logit) - f64::from(largest))).sum();
    let log_sum = f64::from(largest) + libm::log(sum);
    let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
    let top = largest_logits(logits, n_top).into_iter().map(|(token_id, logit)| (token_id, logprob(logit))).collect();
    TokenLogprob { token_id, logprob: logprob(logits[token_id.index()]), top }
}

fn largest_logits(logits: &[f32], n: usize) -> Vec<(TokenId, f32)> {
    let mut top: Vec<(TokenId, f32)> = Vec::with_capacity(n + 1);
    for (index, &logit) in logits.iter().enumerate() {
        if n == 0 || (top.len() == n && top[n - 1].1 >= logit) {
            continue;
        }
        let place = top.partition_point(|&(_, other)| other >= logit);
        top.insert(place, (TokenId(index as u32), logit));
        top.truncate(n);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_of_a_row_are_its_log_softmax() {
        let logits = [1.0f32, 3.0, -2.0, 3.0, 0.5];
        let got = token_logprob(&logits, TokenId(0), 3);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let expected = |logit: f64| (logit - sum.ln()) as f32;
        assert!((got.logprob - expected(1.0)).abs() < 1e-6);
        let ids: Vec<u32> = got.top.iter().map(|(id, _)| id.0).collect();
        assert_eq!(ids, [1, 3, 0], "the lower id first among equals");
        assert!((got.top[0].1 - expected(3.0)).abs() < 1e-6);
        assert!(token_logprob(&logits, TokenId(4), 0).top.is_empty());
        assert_eq!(token_logprob(&logits, TokenId(4), 20).top.len(), 5);
    }
}
