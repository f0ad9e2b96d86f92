//! What is shown, and what keys do to it.

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

use super::{INTERVAL_MAX, INTERVAL_MIN};
use crate::stats::HostStats;
use crate::stats::rates::{HostRates, VmRates};

/// Readings whose sums are kept for the curves.
const HISTORY: usize = 240;

/// What the VMs are sorted by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SortKey {
    /// The name, from a to z.
    Name,
    /// The root, from a to z.
    Root,
    /// Requests, the most first.
    Iops,
    /// Bytes read, the most first.
    Read,
    /// Bytes written, the most first.
    Written,
    /// The 99th percentile of latency, the longest first.
    P99,
    /// The share of hits, the smallest first.
    Hits,
    /// The leaf's size, the largest first.
    Leaf,
    /// The leaf's growth, the fastest first.
    Growth,
}

impl SortKey {
    /// All, in the order of the columns.
    pub const ALL: [Self; 9] = [
        Self::Name,
        Self::Root,
        Self::Iops,
        Self::Read,
        Self::Written,
        Self::P99,
        Self::Hits,
        Self::Leaf,
        Self::Growth,
    ];

    /// The key on the keyboard.
    pub const fn letter(self) -> char {
        match self {
            Self::Name => 'n',
            Self::Root => 'o',
            Self::Iops => 'i',
            Self::Read => 'd',
            Self::Written => 'w',
            Self::P99 => 'l',
            Self::Hits => 'h',
            Self::Leaf => 'f',
            Self::Growth => 'g',
        }
    }

    /// What it does, in words.
    pub const fn explained(self) -> &'static str {
        match self {
            Self::Name => "sort by name",
            Self::Root => "sort by root",
            Self::Iops => "sort by requests",
            Self::Read => "sort by bytes read",
            Self::Written => "sort by bytes written",
            Self::P99 => "sort by the 99th percentile of latency",
            Self::Hits => "sort by hits, the fewest first",
            Self::Leaf => "sort by the leaf's size",
            Self::Growth => "sort by the leaf's growth",
        }
    }

    fn compare(self, a: &VmRates, b: &VmRates) -> Ordering {
        let most_first = |value: fn(&VmRates) -> f64| value(b).total_cmp(&value(a));
        let by_key = match self {
            Self::Name => Ordering::Equal,
            Self::Root => natural(&a.root, &b.root),
            Self::Iops => most_first(|vm| vm.iops),
            Self::Read => most_first(|vm| vm.read_bytes),
            Self::Written => most_first(|vm| vm.written_bytes),
            Self::P99 => most_first(|vm| vm.p99_us.unwrap_or(-1.0)),
            Self::Hits => most_first(|vm| -vm.hit_ratio.unwrap_or(2.0)),
            Self::Leaf => b.leaf_bytes.cmp(&a.leaf_bytes),
            Self::Growth => most_first(|vm| vm.leaf_growth),
        };
        by_key.then_with(|| natural(&a.vm, &b.vm))
    }
}

/// Names with numbers in the order of the numbers: `web2` before `web10`.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut x, mut y) = (a.chars().peekable(), b.chars().peekable());
    loop {
        match (x.peek().copied(), y.peek().copied()) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(c), Some(d)) if c.is_ascii_digit() && d.is_ascii_digit() => {
                let digits = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
                    let mut text = String::new();
                    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                        text.push(digit);
                    }
                    let significant = text.trim_start_matches('0');
                    (significant.len(), significant.to_owned())
                };
                match digits(&mut x).cmp(&digits(&mut y)) {
                    Ordering::Equal => {}
                    unequal => return unequal,
                }
            }
            (Some(c), Some(d)) if c == d => {
                x.next();
                y.next();
            }
            (Some(c), Some(d)) => return c.cmp(&d),
        }
    }
}

/// What the loop does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// Goes on.
    Stay,
    /// Takes a reading now.
    Read,
    /// Ends.
    Leave,
}

/// Sums over the VMs at one reading.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Requests a second.
    pub iops: f64,
    /// Bytes read a second.
    pub read_bytes: f64,
    /// Bytes written a second.
    pub written_bytes: f64,
}

/// All of it.
#[derive(Debug)]
pub struct Model {
    interval: Duration,
    reading: Option<(HostStats, Instant)>,
    rates: Option<HostRates>,
    /// Why the last reading failed.
    pub error: Option<String>,
    /// For how long the next reading has been waited for.
    pub waiting: Option<Duration>,
    /// The sums of the last readings, the newest last.
    pub history: Vec<Sums>,
    /// What the VMs are sorted by.
    pub sort: SortKey,
    /// Whether the other way round.
    pub reversed: bool,
    /// What a VM's or its root's name has to contain.
    pub filter: String,
    /// Whether keys go to the filter.
    pub is_typing: bool,
    /// Whether the chosen VM is shown in detail.
    pub shows_detail: bool,
    /// Whether the keys are explained.
    pub shows_help: bool,
    paused: bool,
    chosen: Option<String>,
    /// Where the table is scrolled to.
    pub table: TableState,
}

impl Model {
    /// With nothing read yet.
    pub fn new(interval: Duration) -> Self {
        Self {
            interval,
            reading: None,
            rates: None,
            error: None,
            waiting: None,
            history: Vec::new(),
            sort: SortKey::Iops,
            reversed: false,
            filter: String::new(),
            is_typing: false,
            shows_detail: false,
            shows_help: false,
            paused: false,
            chosen: None,
            table: TableState::default(),
        }
    }

    /// Time between two readings.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Whether no readings are taken.
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// The last reading.
    pub fn stats(&self) -> Option<&HostStats> {
        self.reading.as_ref().map(|(stats, _)| stats)
    }

    /// What happened between the last two readings; zeros after the first.
    pub fn rates(&self) -> Option<&HostRates> {
        self.rates.as_ref()
    }

    /// A reading, or why there is none.
    pub fn take(&mut self, reading: Result<HostStats, String>, at: Instant) {
        let stats = match reading {
            Ok(stats) => stats,
            Err(error) => {
                self.error = Some(error);
                return;
            }
        };
        self.error = None;
        let (before, seconds) = match &self.reading {
            Some((before, then)) => (before, at.duration_since(*then).as_secs_f64()),
            None => (&stats, 1.0),
        };
        let rates = HostRates::between(before, &stats, seconds);
        if self.reading.is_some() {
            self.history.push(Sums {
                iops: rates.sum(|vm| vm.iops),
                read_bytes: rates.sum(|vm| vm.read_bytes),
                written_bytes: rates.sum(|vm| vm.written_bytes),
            });
            let excess = self.history.len().saturating_sub(HISTORY);
            self.history.drain(..excess);
        }
        self.rates = Some(rates);
        self.reading = Some((stats, at));
    }

    /// The VMs that the filter lets through, sorted.
    pub fn vms(&self) -> Vec<&VmRates> {
        let Some(rates) = &self.rates else {
            return Vec::new();
        };
        let wanted = self.filter.to_lowercase();
        let fits = |name: &str| name.to_lowercase().contains(&wanted);
        let mut vms: Vec<_> =
            rates.vms.iter().filter(|vm| fits(&vm.vm) || fits(&vm.root)).collect();
        vms.sort_by(|a, b| self.sort.compare(a, b));
        if self.reversed {
            vms.reverse();
        }
        vms
    }

    /// The place of the chosen VM in [`Self::vms`]; the first, if it is gone.
    pub fn chosen(&self) -> Option<usize> {
        let vms = self.vms();
        let place = vms.iter().position(|vm| Some(&vm.vm) == self.chosen.as_ref());
        place.or((!vms.is_empty()).then_some(0))
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'd')) {
            return Next::Leave;
        }
        if self.is_typing {
            self.type_key(key.code);
            return Next::Stay;
        }
        match key.code {
            KeyCode::Char('q') => return Next::Leave,
            KeyCode::Esc if self.shows_help => self.shows_help = false,
            KeyCode::Esc if self.shows_detail => self.shows_detail = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?') | KeyCode::F(1) => self.shows_help = !self.shows_help,
            KeyCode::Enter => self.shows_detail = !self.shows_detail,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('s') => self.sort_by_next(1),
            KeyCode::Char('S') => self.sort_by_next(SortKey::ALL.len() - 1),
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return if self.paused { Next::Stay } else { Next::Read };
            }
            KeyCode::Char('+') => self.interval = (self.interval / 2).max(INTERVAL_MIN),
            KeyCode::Char('-') => self.interval = (self.interval * 2).min(INTERVAL_MAX),
            KeyCode::Down | KeyCode::Char('j') => self.choose_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.choose_by(-1),
            KeyCode::PageDown => self.choose_by(10),
            KeyCode::PageUp => self.choose_by(-10),
            KeyCode::Home => self.choose_by(isize::MIN),
            KeyCode::End => self.choose_by(isize::MAX),
            KeyCode::Char(letter) => {
                if let Some(sort) = SortKey::ALL.into_iter().find(|key| key.letter() == letter) {
                    (self.sort, self.reversed) = (sort, false);
                }
            }
            _ => {}
        }
        Next::Stay
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            // As long as the longest name.
            KeyCode::Char(letter) if self.filter.len() < 64 => self.filter.push(letter),
            _ => {}
        }
    }

    fn sort_by_next(&mut self, steps: usize) {
        let place = SortKey::ALL.iter().position(|key| *key == self.sort).unwrap_or(0);
        self.sort = SortKey::ALL[(place + steps) % SortKey::ALL.len()];
        self.reversed = false;
    }

    fn choose_by(&mut self, steps: isize) {
        let vms = self.vms();
        let last = vms.len().saturating_sub(1);
        let place = self.chosen().unwrap_or(0).saturating_add_signed(steps).min(last);
        self.chosen = vms.get(place).map(|vm| vm.vm.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::sample;

    fn press(model: &mut Model, keys: &str) -> Next {
        let key = |letter| match letter {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            '↓' => KeyCode::Down,
            letter => KeyCode::Char(letter),
        };
        keys.chars().fold(Next::Stay, |_, letter| model.key(KeyEvent::from(key(letter))))
    }

    fn names(model: &Model) -> Vec<&str> {
        model.vms().iter().map(|vm| vm.vm.as_str()).collect()
    }

    /// Twelve VMs; the first is the busiest.
    fn model() -> Model {
        let mut model = Model::new(Duration::from_secs(1));
        let before = sample::host(12);
        let mut after = before.clone();
        for (vm, more) in after.vms.iter_mut().zip([500, 400, 300, 200, 100]) {
            vm.operations[0].requests += more;
        }
        let now = Instant::now();
        model.take(Ok(before), now);
        model.take(Ok(after), now + Duration::from_secs(1));
        model
    }

    #[test]
    fn names_with_numbers_are_in_the_order_of_the_numbers() {
        let mut names = ["web10", "web2", "db", "web02", "web", "web2a"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(names, ["db", "web", "web02", "web2", "web2a", "web10"]);
    }

    #[test]
    fn keys_sort_and_turn_the_order_round() {
        let mut model = model();
        assert_eq!(names(&model)[..3], ["web1", "web2", "web3"]);
        press(&mut model, "r");
        assert_eq!(names(&model)[11], "web1");
        press(&mut model, "n");
        assert_eq!(names(&model)[9..], ["web10", "web11", "web12"]);
        press(&mut model, "is");
        assert_eq!(model.sort, SortKey::Read);
        press(&mut model, "SS");
        assert_eq!(model.sort, SortKey::Root);
    }

    #[test]
    fn a_filter_is_typed_kept_and_given_up() {
        let mut model = model();
        press(&mut model, "/WEB1");
        assert!(model.is_typing, "letters go to the filter, q among them");
        press(&mut model, "q\x08\n");
        assert_eq!(names(&model), ["web1", "web10", "web11", "web12"]);
        press(&mut model, "\x1b");
        assert_eq!(names(&model).len(), 12);
        press(&mut model, "/debian\n");
        assert_eq!(names(&model).len(), 12, "roots count too");
    }

    #[test]
    fn the_chosen_vm_stays_chosen_when_the_order_changes() {
        let mut model = model();
        assert_eq!(model.chosen(), Some(0));
        press(&mut model, "↓↓");
        assert_eq!(model.vms()[model.chosen().unwrap()].vm, "web3");
        press(&mut model, "r");
        assert_eq!(model.vms()[model.chosen().unwrap()].vm, "web3");
        press(&mut model, "/web7\n");
        assert_eq!(model.chosen(), Some(0), "it is filtered out");
        press(&mut model, "\x1b↓");
        model.key(KeyEvent::from(KeyCode::End));
        assert_eq!(model.chosen(), Some(11));
    }

    #[test]
    fn q_and_control_c_leave_and_escape_goes_back_first() {
        let mut model = model();
        press(&mut model, "\n");
        assert!(model.shows_detail);
        assert_eq!(press(&mut model, "\x1b"), Next::Stay);
        assert!(!model.shows_detail);
        assert_eq!(press(&mut model, "q"), Next::Leave);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        press(&mut model, "/");
        assert_eq!(model.key(control_c), Next::Leave);
    }

    #[test]
    fn a_failed_reading_is_said_and_the_last_one_stays() {
        let mut model = model();
        model.take(Err("no daemon".into()), Instant::now());
        assert_eq!(model.error.as_deref(), Some("no daemon"));
        assert_eq!(names(&model).len(), 12);
        assert_eq!(press(&mut model, "p"), Next::Stay);
        assert!(model.is_paused());
        assert_eq!(press(&mut model, "p"), Next::Read);
        model.take(Ok(sample::host(3)), Instant::now() + Duration::from_secs(9));
        assert_eq!((model.error.as_deref(), names(&model).len()), (None, 3));
    }
}
