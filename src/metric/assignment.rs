//! The linear assignment problem: the permutation of least total cost.

/// Column of each row, `[n]`, so that the costs at (row, column) have the least sum; `costs` `[n · n]` row by row.
///
/// Shortest augmenting paths (Jonker and Volgenant 1987, in the form of Crouse 2016) after a reduction of rows
/// and columns that settles most pairs; cubic at worst. `None` for costs that are not finite.
pub(super) fn assignment(costs: &[f64], n: usize) -> Option<Vec<usize>> {
    assert_eq!(costs.len(), n * n, "a square of costs");
    let mut problem = Problem::reduced(costs, n);
    for row in 0..n {
        if problem.column_of[row] == NONE && !problem.augment(row) {
            return None;
        }
    }
    Some(problem.column_of)
}

/// No partner yet.
const NONE: usize = usize::MAX;

/// A partial pairing with potentials that make every reduced cost c − row − column at least 0, and that of every
/// pair 0: then the pairing is the cheapest of its rows and columns.
struct Problem<'a> {
    costs: &'a [f64],
    n: usize,
    row_potential: Vec<f64>,
    column_potential: Vec<f64>,
    column_of: Vec<usize>,
    row_of: Vec<usize>,
}

impl<'a> Problem<'a> {
    /// The largest potentials of columns, then of rows, and the pairs that they settle without a conflict.
    fn reduced(costs: &'a [f64], n: usize) -> Self {
        let mut column_potential = vec![f64::INFINITY; n];
        for row in costs.chunks_exact(n) {
            for (least, &cost) in column_potential.iter_mut().zip(row) {
                *least = least.min(cost);
            }
        }
        let mut problem = Problem {
            costs,
            n,
            row_potential: vec![0.0; n],
            column_potential,
            column_of: vec![NONE; n],
            row_of: vec![NONE; n],
        };
        for row in 0..n {
            let reduced = problem.row(row).iter().zip(&problem.column_potential).map(|(cost, v)| cost - v);
            let least = reduced.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
            let Some((column, cost)) = least else { continue };
            problem.row_potential[row] = cost;
            if problem.row_of[column] == NONE {
                problem.row_of[column] = row;
                problem.column_of[row] = column;
            }
        }
        problem
    }

    fn row(&self, row: usize) -> &'a [f64] {
        &self.costs[row * self.n..(row + 1) * self.n]
    }

    /// Pairs one more row along the shortest path to a free column, by Dijkstra's algorithm on reduced costs;
    /// whether there is one.
    fn augment(&mut self, start: usize) -> bool {
        let n = self.n;
        let mut distance = vec![f64::INFINITY; n];
        let mut before = vec![start; n];
        // Columns not reached for good, their potentials beside them so that the inner loop reads in order.
        let mut open: Vec<usize> = (0..n).collect();
        let mut settled: Vec<usize> = Vec::new();
        let (mut row, mut shortest) = (start, 0.0);
        let end = loop {
            let costs = self.row(row);
            let offset = shortest - self.row_potential[row];
            let (mut least, mut at) = (f64::INFINITY, NONE);
            for (index, &column) in open.iter().enumerate() {
                let through = costs[column] - self.column_potential[column] + offset;
                if through < distance[column] {
                    distance[column] = through;
                    before[column] = row;
                }
                if distance[column] < least {
                    (least, at) = (distance[column], index);
                }
            }
            if at == NONE {
                return false;
            }
            shortest = least;
            let column = open.swap_remove(at);
            if self.row_of[column] == NONE {
                break column;
            }
            settled.push(column);
            row = self.row_of[column];
        };
        self.row_potential[start] += shortest;
        for column in settled {
            let gain = shortest - distance[column];
            self.row_potential[self.row_of[column]] += gain;
            self.column_potential[column] -= gain;
        }
        let mut column = end;
        loop {
            let row = before[column];
            self.row_of[column] = row;
            std::mem::swap(&mut self.column_of[row], &mut column);
            if row == start {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cheapest_pairing_gives_up_the_cheapest_pair() {
        // Row 0 alone would take column 0 at 1, and leave 9 for row 1: 10 against 2 + 3.
        assert_eq!(assignment(&[1.0, 2.0, 3.0, 9.0], 2).unwrap(), [1, 0]);
        // Negative costs, and all six permutations by hand: 0-1, 1-2, 2-0 has −5 − 4 − 1 = −10.
        let costs = [0.0, -5.0, -1.0, -3.0, -4.0, -4.0, -1.0, -5.0, 2.0];
        assert_eq!(assignment(&costs, 3).unwrap(), [1, 2, 0]);
    }

    #[test]
    fn equal_costs_still_pair_every_row_with_a_column_of_its_own() {
        let mut columns = assignment(&[0.0; 400], 20).unwrap();
        columns.sort_unstable();
        assert_eq!(columns, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn costs_that_are_no_numbers_have_no_pairing() {
        assert!(assignment(&[f64::NAN; 4], 2).is_none());
        assert!(assignment(&[f64::INFINITY; 4], 2).is_none());
    }
}
