-- One unit for one shopper, in one statement and one transaction: the minimum of a hold.
\set product random(1, :products)
\set shopper random(1, 10000)
WITH taken AS (
  UPDATE stock SET held = held + 1 WHERE product = :product AND received - held >= 1 RETURNING product
)
INSERT INTO hold (shopper, product, quantity) SELECT :shopper, product, 1 FROM taken RETURNING product;
