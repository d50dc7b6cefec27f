//! Tells a thread's relayed connections that something has changed for all of them (a policy, the drain, the hold), so that none of them has to listen to
//! three channels at every byte: looking at a bell costs one memory cell.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    task::{Context, Waker},
};

/// A thread's bells.
#[derive(Default)]
pub struct Bells {
    next: Cell<u64>,
    hung: RefCell<HashMap<u64, Rc<Inner>>>,
}

#[derive(Default)]
struct Inner {
    rung: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// One connection's.
pub struct Bell {
    id: u64,
    inner: Rc<Inner>,
    bells: Rc<Bells>,
}

impl Bells {
    pub fn hang(self: &Rc<Self>) -> Bell {
        let (id, inner) = (self.next.get(), Rc::<Inner>::default());
        self.next.set(id + 1);
        self.hung.borrow_mut().insert(id, Rc::clone(&inner));
        Bell { id, inner, bells: Rc::clone(self) }
    }

    /// Everybody looks at what has changed.
    pub fn ring(&self) {
        for bell in self.hung.borrow().values() {
            bell.rung.set(true);
            if let Some(waker) = bell.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }
}

impl Bell {
    /// Whether it was rung since the last look; the task of `cx` is woken when it is rung again.
    pub fn rung(&self, cx: &Context<'_>) -> bool {
        let mut waker = self.inner.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        self.inner.rung.take()
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.bells.hung.borrow_mut().remove(&self.id);
    }
}
