//! Changes of inputs, as a disk or a hostile peer would make them.

use rand::Rng;
use rand::rngs::StdRng;

/// Longest input.
const INPUT_BYTES_MAX: usize = 16 << 10;
/// Most changes of one input.
const CHANGES_MAX: u32 = 6;
/// Values at which arithmetic goes wrong.
const NUMBERS: [u64; 12] =
    [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fff_ffff, 0xffff_fff0, 0xffff_ffff, 1 << 44, u64::MAX - 7, u64::MAX];

/// Returns an input that differs from one of these, which must not be empty.
pub(crate) fn mutated(pool: &[Vec<u8>], chance: &mut StdRng) -> Vec<u8> {
    let mut input = pool[chance.random_range(0..pool.len())].clone();
    for _ in 0..chance.random_range(1..=CHANGES_MAX) {
        change(&mut input, pool, chance);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

/// Returns a place within the input, or its end.
fn place(input: &[u8], chance: &mut StdRng) -> usize {
    chance.random_range(0..=input.len())
}

fn change(input: &mut Vec<u8>, pool: &[Vec<u8>], chance: &mut StdRng) {
    let at = place(input, chance);
    match chance.random_range(0..10) {
        0 | 1 if at < input.len() => input[at] ^= 1 << chance.random_range(0..8),
        2 if at < input.len() => input[at] = chance.random(),
        // A number of a fixed size, as lengths in files are.
        3 | 4 => {
            let number = NUMBERS[chance.random_range(0..NUMBERS.len())].to_le_bytes();
            let len = [1, 2, 4, 8][chance.random_range(0..4)].min(input.len() - at);
            input[at..at + len].copy_from_slice(&number[..len]);
        }
        // A number of variable length, as those in messages are, in place of a byte.
        5 => {
            let mut number = NUMBERS[chance.random_range(0..NUMBERS.len())];
            let mut coded = Vec::new();
            while number >= 0x80 {
                coded.push(number as u8 | 0x80);
                number >>= 7;
            }
            coded.push(number as u8);
            let end = (at + 1).min(input.len());
            input.splice(at..end, coded);
        }
        6 => input.truncate(at),
        7 => {
            let bytes: Vec<u8> = (0..chance.random_range(1..9)).map(|_| chance.random()).collect();
            input.splice(at..at, bytes);
        }
        // A part is lost, or comes twice.
        8 => {
            let end = (at + chance.random_range(1..33)).min(input.len());
            let part: Vec<u8> = input.drain(at..end).collect();
            if chance.random() {
                let again = place(input, chance);
                input.splice(again..again, [part.clone(), part].concat());
            }
        }
        // The rest is that of another input.
        _ => {
            let other = &pool[chance.random_range(0..pool.len())];
            let from = place(other, chance);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_none_is_longer_than_allowed() {
        let pool = vec![vec![7; 100], Vec::new(), vec![9; INPUT_BYTES_MAX]];
        let made = |seed| {
            let mut chance = StdRng::seed_from_u64(seed);
            (0..2000).map(|_| mutated(&pool, &mut chance)).collect::<Vec<_>>()
        };
        assert!(made(1) == made(1) && made(1) != made(2));
        assert!(made(1).iter().all(|input| input.len() <= INPUT_BYTES_MAX));
    }
}
