//! Ctrl-C: while text is generated it ends that text; a second one, or one at any other time, ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status of a program ended by Ctrl-C, as shells expect it.
const INTERRUPTED_STATUS: i32 = 130;

/// Whether Ctrl-C was pressed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt {
    listening: Arc<AtomicBool>,
    pressed: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over Ctrl-C from the operating system. Where that fails, Ctrl-C just ends the program.
    pub(crate) fn install() -> Self {
        let interrupt = Self::default();
        let handler = interrupt.clone();
        let _ = ctrlc::set_handler(move || {
            if !handler.listening.load(Ordering::Relaxed) || handler.pressed.swap(true, Ordering::Relaxed) {
                std::process::exit(INTERRUPTED_STATUS);
            }
        });
        interrupt
    }

    /// From now on Ctrl-C is ours.
    pub(crate) fn listen(&self) {
        self.pressed.store(false, Ordering::Relaxed);
        self.listening.store(true, Ordering::Relaxed);
    }

    /// From now on Ctrl-C ends the program.
    pub(crate) fn ignore(&self) {
        self.listening.store(false, Ordering::Relaxed);
    }

    /// Pressed since `listen`.
    pub(crate) fn is_pressed(&self) -> bool {
        self.pressed.load(Ordering::Relaxed)
    }

    /// As if it had been pressed.
    #[cfg(test)]
    pub(crate) fn press(&self) {
        self.pressed.store(true, Ordering::Relaxed);
    }
}
