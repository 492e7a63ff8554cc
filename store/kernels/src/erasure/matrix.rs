//! Matrices over GF(2^8), and the tables that kernels multiply by.

use reed_solomon_erasure::galois_8::{ReedSolomon, add, div, mul};

use crate::geometry::Geometry;

/// Elements of GF(2^8), row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Matrix {
    columns: usize,
    elements: Vec<u8>,
}

impl Matrix {
    /// The k+m rows of k elements that turn data shards into all shards.
    ///
    /// The crate does not expose its matrix, but coding k-byte unit vectors reveals it: the i-th byte of a parity shard
    /// is then that row's factor for data shard i. So the matrix is the crate's by construction.
    pub(super) fn generator(geometry: Geometry) -> Self {
        let (data, parity) = (geometry.data(), geometry.parity());
        let mut elements = Self::identity(data).elements;
        elements.resize(geometry.total() * data, 0);
        if parity > 0 {
            let coder = ReedSolomon::new(data, parity).expect("a Geometry has at least one and at most 64 shards");
            let (unit_vectors, rows) = elements.split_at_mut(data * data);
            let unit_vectors: Vec<&[u8]> = unit_vectors.chunks(data).collect();
            let mut rows: Vec<&mut [u8]> = rows.chunks_mut(data).collect();
            coder.encode_sep(&unit_vectors, &mut rows).expect("k data and m parity shards of k bytes");
        }
        Self { columns: data, elements }
    }

    fn identity(size: usize) -> Self {
        let mut elements = vec![0; size * size];
        elements.iter_mut().step_by(size + 1).for_each(|diagonal| *diagonal = 1);
        Self { columns: size, elements }
    }

    pub(super) fn row(&self, row: usize) -> &[u8] {
        &self.elements[row * self.columns..][..self.columns]
    }

    /// The matrix of the rows named.
    pub(super) fn select(&self, rows: impl Iterator<Item = usize>) -> Self {
        Self { columns: self.columns, elements: rows.flat_map(|row| self.row(row)).copied().collect() }
    }

    /// `row` times this matrix.
    pub(super) fn multiply_row(&self, row: &[u8]) -> Vec<u8> {
        let mut product = vec![0; self.columns];
        for (&factor, own) in row.iter().zip(self.elements.chunks(self.columns)) {
            add_multiple(&mut product, factor, own);
        }
        product
    }

    /// The inverse of a square matrix of k different generator rows, by Gauss-Jordan elimination.
    ///
    /// Always exists: the generator is V * T^-1 with V Vandermonde over distinct points, any k rows of which are
    /// independent.
    pub(super) fn inverse(mut self) -> Self {
        let size = self.columns;
        let mut inverse = Self::identity(size);
        for pivot in 0..size {
            let found = (pivot..size).find(|&row| self.row(row)[pivot] != 0);
            let found = found.expect("any k rows of the generator are independent");
            self.swap_rows(pivot, found);
            inverse.swap_rows(pivot, found);
            let scale = div(1, self.row(pivot)[pivot]);
            self.scale_row(pivot, scale);
            inverse.scale_row(pivot, scale);
            for row in (0..size).filter(|&row| row != pivot) {
                let factor = self.row(row)[pivot];
                self.add_row(row, factor, pivot);
                inverse.add_row(row, factor, pivot);
            }
        }
        inverse
    }

    fn swap_rows(&mut self, a: usize, b: usize) {
        (0..self.columns).for_each(|column| self.elements.swap(a * self.columns + column, b * self.columns + column));
    }

    fn scale_row(&mut self, row: usize, factor: u8) {
        let columns = self.columns;
        self.elements[row * columns..][..columns].iter_mut().for_each(|element| *element = mul(factor, *element));
    }

    fn add_row(&mut self, target: usize, factor: u8, source: usize) {
        let source = self.row(source).to_vec();
        let columns = self.columns;
        add_multiple(&mut self.elements[target * columns..][..columns], factor, &source);
    }
}

fn add_multiple(target: &mut [u8], factor: u8, source: &[u8]) {
    target.iter_mut().zip(source).for_each(|(target, &source)| *target = add(*target, mul(factor, source)));
}

/// A matrix in the forms the kernels multiply by: `rows` outputs from `columns` sources.
///
/// Each form is stored column by column, since a kernel takes one source at a time and adds it to all outputs.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// The elements themselves.
    pub(super) elements: Vec<u8>,
    /// Multiplication by the element as an 8x8 bit matrix in the layout of GF2P8AFFINEQB. That instruction works for
    /// any field polynomial; GF2P8MULB is fixed to 0x11B, which is not ours.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(super) bit_matrices: Vec<u64>,
    /// Products of the element with 0..16, then with 0, 16, .. 240: a byte's product is the sum of its halves' products.
    pub(super) nibbles: Vec<[u8; 32]>,
}

impl Tables {
    /// From rows of equal length.
    pub(super) fn new<'a>(rows: impl Iterator<Item = &'a [u8]>) -> Self {
        let rows: Vec<&[u8]> = rows.collect();
        let columns = rows.first().map_or(0, |row| row.len());
        let elements: Vec<u8> = (0..columns).flat_map(|column| rows.iter().map(move |row| row[column])).collect();
        let bit_matrices = elements.iter().copied().map(bit_matrix).collect();
        let nibbles = elements.iter().copied().map(nibble_products).collect();
        Self { rows: rows.len(), columns, elements, bit_matrices, nibbles }
    }
}

/// Bit i of a product is the parity of (byte 7-i of the matrix AND the source byte): Intel SDM, GF2P8AFFINEQB.
fn bit_matrix(element: u8) -> u64 {
    let mut matrix = 0;
    for source_bit in 0..8 {
        let product = mul(element, 1 << source_bit);
        for product_bit in 0..8 {
            let bit = u64::from(product >> product_bit & 1);
            matrix |= bit << (8 * (7 - product_bit) + source_bit);
        }
    }
    matrix
}

fn nibble_products(element: u8) -> [u8; 32] {
    std::array::from_fn(|at| if at < 16 { mul(element, at as u8) } else { mul(element, (at as u8 - 16) << 4) })
}
