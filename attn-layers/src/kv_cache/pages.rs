//! The pool of a paged cache: how many sequences have each page, and which pages are free.

/// A number for each page and two more: that of a page in use is how many sequences have it; free pages are a list, each with the next
/// one as `-1 - next`; then the first of the list, and how many there are. The list ends with the number of pages.
#[derive(Debug)]
pub(super) struct Pool<'c>(pub(super) &'c mut [i32]);

impl Pool<'_> {
    fn pages(&self) -> usize {
        self.0.len() - 2
    }

    /// Frees every page.
    pub(super) fn clear(&mut self) {
        let pages = self.pages();
        for (page, slot) in self.0[..pages].iter_mut().enumerate() {
            *slot = -2 - page as i32;
        }
        self.0[pages] = 0;
        self.0[pages + 1] = pages as i32;
    }

    /// Pages that no sequence has.
    pub(super) fn free(&self) -> usize {
        self.0[self.pages() + 1] as usize
    }

    /// How many sequences have a page.
    pub(super) fn owners(&self, page: i32) -> usize {
        usize::try_from(self.0[page as usize]).unwrap_or(0)
    }

    /// Takes a free page for one sequence. There is one: who takes pages has counted them.
    pub(super) fn take(&mut self) -> i32 {
        let pages = self.pages();
        let page = self.0[pages];
        self.0[pages] = -1 - self.0[page as usize];
        self.0[pages + 1] -= 1;
        self.0[page as usize] = 1;
        page
    }

    /// Another sequence has the page too.
    pub(super) fn share(&mut self, page: i32) {
        self.0[page as usize] += 1;
    }

    /// One sequence less has the page.
    pub(super) fn release(&mut self, page: i32) {
        let pages = self.pages();
        let slot = page as usize;
        self.0[slot] -= 1;
        if self.0[slot] == 0 {
            self.0[slot] = -1 - self.0[pages];
            self.0[pages] = page;
            self.0[pages + 1] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_free_when_its_last_owner_is_gone() {
        let mut numbers = [0; 5];
        let mut pool = Pool(&mut numbers);
        pool.clear();
        let pages = [pool.take(), pool.take(), pool.take()];
        assert_eq!((pages, pool.free()), ([0, 1, 2], 0));
        pool.share(1);
        pool.release(1);
        assert_eq!((pool.owners(1), pool.free()), (1, 0));
        pool.release(1);
        pool.release(0);
        assert_eq!((pool.owners(1), pool.free()), (0, 2));
        assert_eq!([pool.take(), pool.take()], [0, 1]);
    }
}
