//! Sends requests when they are due.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use indicatif::ProgressBar;
use rand::{Rng, rngs::SmallRng};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, sleep_until},
};

use super::{
    api::{Request, Route},
    args::BodyArgs,
    client::{AskError, Server},
    timeline::Answer,
};

/// The most tokens of an answer before the load.
const WARM_UP_LEN: usize = 32;
/// What a server gets to settle in before the load.
const PAUSE: Duration = Duration::from_secs(1);

/// Where requests go, and what is in each.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) server: Server,
    pub(super) route: Route,
    pub(super) model: String,
    pub(super) body: BodyArgs,
}

/// What came of a load.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) answers: Vec<Result<Answer, AskError>>,
    /// From the first request to the end of the last.
    pub(super) duration_s: f64,
}

impl Target {
    async fn ask(&self, request: &Request, origin: Instant) -> Result<Answer, AskError> {
        self.server.ask(self.route, &self.model, request, &self.body, origin).await
    }

    /// Sends `request` `count` times at once; `Err` if no answer comes.
    pub(super) async fn warm_up(
        self: &Arc<Self>,
        request: &Request,
        count: usize,
    ) -> anyhow::Result<()> {
        let output_len = request.output_len.min(WARM_UP_LEN);
        let request = Request { output_len, ..request.clone() };
        let requests: Vec<_> = std::iter::repeat_n(request, count).collect();
        let due = vec![Duration::ZERO; count];
        let mut outcome = self.run(&requests, &due, None, &ProgressBar::hidden()).await?;
        if let Some(Err(_)) = outcome.answers.first()
            && outcome.answers.iter().all(Result::is_err)
            && let Err(error) = outcome.answers.swap_remove(0)
        {
            return Err(anyhow!(error).context("no request before the load was answered"));
        }
        Ok(())
    }

    /// Sends each request when it is `due`, or, with a limit to how many are under way, as
    /// soon as it is its turn.
    pub(super) async fn run(
        self: &Arc<Self>,
        requests: &[Request],
        due: &[Duration],
        limit: Option<usize>,
        bar: &ProgressBar,
    ) -> anyhow::Result<Outcome> {
        let permits =
            limit.map(|limit| Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))));
        let origin = Instant::now();
        let mut tasks = JoinSet::new();
        for (index, (request, &due)) in requests.iter().zip(due).enumerate() {
            if !due.is_zero() {
                sleep_until((origin + due).into()).await;
            }
            let permit = match &permits {
                None => None,
                Some(permits) => Some(Arc::clone(permits).acquire_owned().await?),
            };
            let (target, request, bar) = (Arc::clone(self), request.clone(), bar.clone());
            tasks.spawn(async move {
                let answer = target.ask(&request, origin).await;
                drop(permit);
                bar.inc(1);
                (index, answer)
            });
        }
        let mut answers = tasks.join_all().await;
        let duration_s = origin.elapsed().as_secs_f64();
        answers.sort_unstable_by_key(|(index, _)| *index);
        let answers = answers.into_iter().map(|(_, answer)| answer).collect();
        Ok(Outcome { answers, duration_s })
    }
}

/// Has the server drop its caches if asked to, and gives it time after a warm-up.
pub(super) async fn settle(server: &Server, flush: bool, warm: bool) -> anyhow::Result<()> {
    if flush {
        server.flush_cache().await.context("the load can't start")?;
    }
    if flush || warm {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// When requests are due: the first at once, then after gaps of a Poisson process.
pub(super) fn arrivals(count: usize, per_s: f64, rng: &mut SmallRng) -> Vec<Duration> {
    let mut due = 0.0;
    let arrivals = (0..count).map(|index| {
        if index > 0 && per_s.is_finite() {
            // The logarithm of a number that is never 0.
            due -= (1.0 - rng.random::<f64>()).ln() / per_s;
        }
        Duration::try_from_secs_f64(due).unwrap_or(Duration::MAX)
    });
    arrivals.collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn arrivals_are_those_of_a_poisson_process() {
        let (count, per_s) = (40_000, 250.0);
        let due = arrivals(count, per_s, &mut SmallRng::seed_from_u64(7));
        assert_eq!(due[0], Duration::ZERO);
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean * per_s - 1.0).abs() < 0.02, "{mean}");
        // Gaps without memory: their deviation is their mean, e⁻¹ of them are longer.
        let square = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
        let deviation = (square / gaps.len() as f64).sqrt();
        assert!((deviation / mean - 1.0).abs() < 0.03, "{deviation}");
        let longer = gaps.iter().filter(|&&gap| gap > mean).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0f64).exp()).abs() < 0.01, "{longer}");
        // The number in a second varies as much as its mean says.
        let seconds = due[count - 1].as_secs() as usize;
        let mut counts = vec![0.0; seconds];
        for due in due.iter().filter(|due| (due.as_secs() as usize) < seconds) {
            counts[due.as_secs() as usize] += 1.0;
        }
        let variance =
            counts.iter().map(|count| (count - per_s).powi(2)).sum::<f64>() / seconds as f64;
        assert!((variance / per_s - 1.0).abs() < 0.35, "{variance}");
    }

    #[test]
    fn without_a_rate_all_are_due_at_once() {
        let due = arrivals(3, f64::INFINITY, &mut SmallRng::seed_from_u64(7));
        assert_eq!(due, [Duration::ZERO; 3]);
    }
}
