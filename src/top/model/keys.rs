//! What keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{Model, SortKey};
use crate::top::{INTERVAL_MAX, INTERVAL_MIN};

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

impl Model {
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
        self.chosen = vms.get(place).map(|vm| vm.name.clone());
    }
}
