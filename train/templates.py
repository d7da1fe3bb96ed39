"""How each gsm_symbolic template of reasoning-gym is solved, step by step.

The generators' own worked answers are not used: some do not parse ("receives 52=52 emails"), some
carry floats (9.999999999999998) or round silently. A solution here is a list of steps over the
variables that the generator used in its question; train/problems.py computes them with exact
fractions and keeps an instance only if the last step equals the generator's answer.

One step a line: `key | what it is | expression | unit`. The expression has one kind of operator:
    a + b + ...    a - b - ...    a * b    a / b
    p % n      p per cent of n              f ~ n     the fraction f of n
    a @ b      a as a percentage of b
Operands are variables (`prices[0]`), keys of earlier steps, or numbers. The unit `$` is the
problem's currency, before the number. Names in braces are text variables.

Left out, 10 of 100: 35 (a rounded percentage), 61 and 90 (amounts rounded to whole units), 66 (the
question itself shows 30.833333333333332 hours), 97 (the question says 0.33 where it means a third),
and 27, 32, 49, 73, 86, whose six and seven steps do not fit into 128 tokens.
"""

TEMPLATES: dict[int, str] = {
    0: """a | time to peel everything | total_amount / peel_rate | minutes
b | number of batches to cook | total_amount / batch_size | batches
c | total cooking time | b * time_per_batch | minutes
d | total time {name} spends | a + c | minutes""",
    1: """a | number of old toys | building_blocks + stuffed_animals + stacking_rings | toys
b | number of bouncy balls in the tube | total_toys - a | bouncy balls""",
    2: """a | number of {group1} | percent_group1 % total_students | students
b | number of remaining students | total_students - a | students
c | number of {group2} and {group3} | percent_group23 % b | students
d | number of students leaving early | a + c | students""",
    3: """a | number of people {name} still writes to | initial_penpals - lost_penpals | people
b | number of letters a week | a * letters_per_week | letters
c | number of pages a week | b * pages_per_letter | pages
d | time spent writing | c * minutes_per_page | minutes
e | number of hours a week | d / 60 | hours""",
    4: """a | number of {food}s to decorate | num_jars * per_jar | {food}s
b | number of {container}s to bake | a / per_pan | {container}s""",
    5: """a | number of signatures so far | signatures1 + signatures2 | signatures
b | number of signatures still needed | goal - a | signatures""",
    6: """a | number of boys | n_girls * multiplier | boys
b | number of kids in the {place} | n_girls + a | kids""",
    7: """a | number of plants on the ledges | num_ledges * plants_per_ledge | plants
b | number of plants with the new ones | a + plants_received | plants
c | number of plants given away | num_ledges * plants_to_give | plants
d | number of plants left for {name} | b - c | plants""",
    8: """a | number of parts in the ratio | sugar_ratio + water_ratio | parts
b | size of one part | total_items / a |
c | amount of sugar {name} used | sugar_ratio * b | teaspoons""",
    9: """a | money {name} starts with | num_bills * bill_value | $
b | cost of the {item1}s | num_items1 * price1 | $
c | cost of the {item2}s | num_items2 * price2 | $
d | total spent | b + c | $
e | money left | a - d | $""",
    10: """a | future age of {name2} | age1 * mult | years
b | age of {name2} now | a - years | years""",
    11: """a | amount of {food1} at first | multiplier * initial_amount | pieces
b | amount of fruit at first | a + initial_amount | pieces
c | amount of {food1} bought | bought_amount - difference | pieces
d | amount of fruit bought | c + bought_amount | pieces
e | total amount of fruit now | b + d | pieces""",
    12: """a | time for the {game1}s | time1 * num1 | minutes
b | time for the {game2}s | time2 * num2 | minutes
c | total playing time | a + b | minutes""",
    13: """a | time on the biggest slide | length1 / speed1 | minutes
b | time on the second slide | length2 / speed2 | minutes
c | difference between the rides | a - b | minutes""",
    14: """a | time for {day1} and {day2} together | time1 + time2 | minutes
b | time {name} needs on {day3} | a * multiplier | minutes""",
    15: """a | price of the {item2} | price2 + price1 | $
b | sale price of the {item3} | price3 / 2 | $
c | price of the {item4} with the coupon | price4 - discount | $
d | total {name} spent | price1 + a + b + c | $""",
    16: """a | number of friends {name2} has | charlie_friends / mult1 | friends
b | number of friends {name3} has | a * mult2 | friends""",
    17: """a | number of {item}s already in use | initial_fraction ~ total_capacity | {item}s
b | number of {item}s free at the start | total_capacity - a | {item}s
c | number of patients in one week | daily_patients * 7 | patients
d | number of patients in all the weeks | c * period_weeks | patients
e | number of {item}s still free | b - d | {item}s""",
    18: """a | half of the score of {name1} | score1 / 2 | points
b | score of {name2} | a + bonus | points
c | total score | score1 + b | points""",
    19: """a | number in the second interval | multiplier_2 * initial_kernels | kernels
b | number in the third interval | multiplier_3 * initial_kernels | kernels
c | number in the final interval | b / 2 | kernels
d | number popped by leftover heat | c / 4 | kernels
e | total number of pieces | initial_kernels + a + b + c + d | pieces""",
    20: """a | number of {obj}s that fit | capacity_per_tray * num_trays | {obj}s
b | number of {obj}s left over | total_items - a | {obj}s""",
    21: """a | number of plants that fit | bed_length / plant_spacing | plants
b | number of plants to buy | a - owned_plants | plants
c | cost of the new plants | b * cost_per_plant | $""",
    22: """a | brokerage fee | brokerage_fee % price | $
b | transfer fee | transfer_fee % price | $
c | total price of the {property_type} | price + a + b | $
d | amount above the budget | c - budget | $""",
    23: """a | income {name} would lose | hourly_rate * hours | $
b | money {name} saves | a - fee | $""",
    24: """a | age of {name} at the second viewing | relative_age * multiple | years
b | age of {name} at the first viewing | a - orbit_period | years""",
    25: """a | number of calories left | total_target - consumed | calories
b | number of servings allowed | a / calories | servings
c | size of one serving | size / servings | {unit}
d | amount of {food} allowed | b * c | {unit}""",
    26: """a | number of {ball_type} balls | percent_first % total_balls | balls
b | number of {color} {ball_type} balls | percent_second % a | balls""",
    28: """a | increase in price | percent_increase % base_price | $
b | new price of the {item} | base_price + a | $
c | amount of {item} for the week | usage_per_day * 7 | {unit}
d | cost of the {item} | b * c | $
e | total cost | d + extra_price | $""",
    29: """a | total number of puppies | puppies1 + puppies2 | puppies
b | number of spotted puppies | spotted1 + spotted2 | puppies
c | percentage of spotted puppies | b @ a | percent""",
    30: """a | number who like to {hobby4} | 2 * hobby2_count | students
b | number with the other hobbies | hobby1_count + hobby2_count + a | students
c | number who like to {hobby3} | total_students - b | students""",
    31: """a | share of the {sibling1} | first_person_slices + second_person_extra | slices
b | share of the {sibling2} | a + third_person_extra | slices
c | total number of slices eaten | first_person_slices + a + b | slices""",
    33: """a | number {name1} serves in a day | multiplier * base_rate | customers
b | number served together in a day | a + base_rate | customers
c | number served in a week | b * 7 | customers""",
    34: """a | number of {item} the twins found | items_per_twin * 2 | {item}
b | number of {item} that remained | total_items - a | {item}
c | number of {item} the friends found | b - unfound_items | {item}""",
    36: """a | number of {easy_subject} questions | easy_percent % total_questions | questions
b | number of other questions | total_questions - a | questions
c | number of {easy_subject} points | easy_correct_percent % a | points
d | number of points from the others | b / 2 | points
e | total score of {student_name} | c + d | points""",
    37: """a | daily amount with the {tool2} | base_amount * mult1 | {unit}
b | extra amount with the {tool3} | mult2 % a | {unit}
c | daily amount with the {tool3} | a + b | {unit}
d | daily amount for all {worker}s | c * num_workers | {unit}
e | amount in the month | d * num_days | {unit}""",
    38: """a | wool for one child | n[0] + n[1] + n[2] + n[3] + n[4] | skeins
b | wool {name} needs in all | a * count | skeins""",
    39: """a | number of boys in the grade | total_students - num_girls | boys
b | number of boys there on {day} | a - absent_boys | boys""",
    40: """a | number of extra {c2} cards | p % n1 | cards
b | number of {c2} cards | n1 + a | cards
c | number of {c3} cards | n1 + b | cards
d | total number of cards | n1 + b + c | cards""",
    41: """a | amount the {organization} pays | fraction ~ total_cost | $
b | amount {name} has covered | a + current_amount | $
c | amount {name} is missing | total_cost - b | $""",
    42: """a | {fee1_name} fee | fee1_percent % price | $
b | {fee2_name} fee | fee2_percent % price | $
c | total of fees and loan | a + b + loan | $
d | net proceeds | price - c | $""",
    43: """a | number of {item}s the {relation} has | first_amount - difference | {item}s
b | number of {item}s together | first_amount + a | {item}s""",
    44: """a | value of the {colors[0]} balls | quantities[0] * prices[0] | $
b | value of the {colors[1]} balls | quantities[1] * prices[1] | $
c | value of the {colors[2]} balls | quantities[2] * prices[2] | $
d | total the {store} receives | a + b + c | $""",
    45: """a | number of {obj} before cooking | remaining + used_items | {obj}
b | number of {obj} in the first package | a - husband_package | {obj}""",
    46: """a | amount of water in the {fruit2} drink | water_fraction2 ~ initial_amount2 | liters
b | amount of {fruit1} drink left | initial_amount1 - spilled_amount | liters
c | amount of water in the {fruit1} drink | water_fraction1 ~ b | liters
d | total amount of water | a + c | liters""",
    47: """a | cost of the {item1} | items1_count * item1_cost | $
b | cost of the {item2} | items2_count * item2_cost | $
c | total {name} spent | a + b + paper_cost | $""",
    48: """a | cost of the {item1} | n1 * price1 | $
b | cost of the {item2}s | n2 * price2 | $
c | difference in cost | a - b | $""",
    50: """a | number of pieces in half the puzzle | puzzle1_pieces / 2 | pieces
b | number of pieces {name} placed | a + puzzle2_pieces | pieces""",
    51: """a | cost of the {activity3} for one person | cost2 * times | $
b | total cost for one person | cost1 + tokens + a | $
c | number of people who can come | budget / b | people
d | number of friends {name} can invite | c - 1 | friends""",
    52: """a | number of letters in the full copies | alphabet_count * times_written | letters
b | number of letters in the part | fraction ~ alphabet_count | letters
c | number of letters so far | a + b | letters
d | total number of letters | c * 2 | letters""",
    53: """a | number of faces above {target} | sides - target | faces
b | chance of a number above {target} | a @ sides | percent
c | chance of two {property} numbers in a row | 50 / 2 | percent
d | difference between the chances | b - c | percent""",
    54: """a | time left at the {location2} | total_time - library_time | minutes
b | time left to reach the {location1} | a - station_time | minutes""",
    55: """a | number of {insect1} | n / 2 | {insect1}
b | total number of insects | a + n | insects""",
    56: """a | number of {flavor1} and {flavor2} {item}s | n1 + n2 | {item}s
b | number of {flavor3} {item}s | total - a | {item}s""",
    57: """a | number playing {sports[1]} | tennis_players * 2 | students
b | number playing {sports[2]} | soccer_boys + soccer_girls | students
c | total number of students | tennis_players + a + b | students""",
    58: """a | amount of {liquid} {name} drank | volume * num_containers | {unit}s
b | number of calories in the {liquid} | a * calories | calories""",
    59: """a | number of intervals | total_distance / distance_per_interval | intervals
b | time to cover the city | a * time_per_interval | minutes""",
    60: """a | time for one {unit} on the beach | beach_time / beach_distance | minutes
b | time for one {unit} on the sidewalk | a / 2 | minutes
c | time on the sidewalk | sidewalk_distance * b | minutes
d | total time of the walk | beach_time + c | minutes""",
    62: """a | number of {unit} {name2} eats a day | slices_per_day * multiplier | {unit}
b | number of {unit} eaten a day | slices_per_day + a | {unit}
c | number of days the {item} lasts | num_slices / b | days""",
    63: """a | pay for one day | hours_per_day * hourly_rate | $
b | number of working days | days_per_week * 4 | days
c | pay for the month | a * b | $
d | bonus for the month | weekly_bonus * 4 | $
e | total {name} made in {month} | c + d | $""",
    64: """a | number of eggs in the first period | eggs_per_day_first * days_first | eggs
b | number of eggs in the second period | eggs_per_day_second * days_second | eggs
c | total number of eggs | a + b | eggs
d | number of dozens | c / 12 | dozen""",
    65: """a | earnings from the first {fish} | weight1 * price | $
b | earnings from the second {fish} | weight2 * price | $
c | number of other {fish}s | num_fish - 2 | {fish}s
d | earnings from one other {fish} | weight3 * price | $
e | earnings from the others | c * d | $
f | total {name} earns | a + b + e | $""",
    67: """a | number picked on the first two days | day1_amount + day2_amount | fruits
b | number picked on {day3} | day1_amount * multiplier | fruits
c | total number {name} has | a + b | fruits""",
    68: """a | number of new cases on the first day | initial_infected * infection_rate | people
b | number infected after one day | initial_infected + a | people
c | number of new cases on the second day | b * infection_rate | people
d | number infected after two days | b + c | people
e | number of new cases on the third day | d * infection_rate | people
f | number infected after three days | d + e | people""",
    69: """a | number of pages already written | fraction ~ total_pages | pages
b | number of pages left for {name} | total_pages - a | pages""",
    70: """a | number of {objects} after the fall | initial_count - dropped | {objects}
b | number of {objects} after the search | a + found_count | {objects}
c | number of {objects} in the end | b - fake_count | {objects}""",
    71: """a | cost of the {item1} | n1 * p1 | $
b | cost of the {item2} | n2 * p2 | $
c | cost of the {item3} | n3 * p3 | $
d | total cost of the {item} | a + b + c | $""",
    72: """a | number of {color2} {obj}s | n1 * mult | {obj}s
b | number of {color1} and {color2} {obj}s | n1 + a | {obj}s
c | number of {color3} {obj}s | total - b | {obj}s""",
    74: """a | length of the remoras in inches | num_remoras * remora_length_inches | inches
b | length of the remoras in feet | a / 12 | feet
c | percentage of the {big_fish} | b @ length_feet | percent""",
    75: """a | number of {color1} tubes {name2} has | n1 / 2 | tubes
b | number of {color2} tubes {name2} has | n2 * mult1 | tubes
c | total number of tubes | a + b | tubes""",
    76: """a | number of people with interviews | interview_percent % total_applicants | people
b | number of people with offers | offer_percent % a | people
c | number of people who accept | accept_percent % b | people""",
    77: """a | number of people at the {event} | men + women | people
b | number of people who left | fraction_left ~ a | people
c | number of people who stayed | a - b | people
d | number of {group2} left | c - men_stayed | {group2}""",
    78: """a | age of {name2} | age1 + age_diff | years
b | sum of the ages | age1 + a | years
c | average age | b / 2 | years""",
    79: """a | number of hours in all | end_time - start_time | hours
b | number of paid hours | a - free_hours | hours
c | number of more expensive hours | b - 1 | hours
d | price of each later hour | first_hour_cost * multiplier | $
e | cost of the later hours | c * d | $
f | total {name} paid | e + first_hour_cost | $""",
    80: """a | number of {color1} spools | light_color1_spools + dark_color1_spools | spools
b | number of {color2} spools | light_color2_spools + dark_color2_spools | spools
c | total number of spools | a + b | spools
d | percentage of {color1} spools | a @ c | percent""",
    81: """a | number of days worked in a month | days_per_week * weeks_per_month | days
b | pay for a month | a * pay_per_day | $
c | pay for a year | b * 12 | $""",
    82: """a | number of emails without a reply | no_response_percent % num_emails | emails
b | number of replies in a day | num_emails - a | emails
c | number of replies in the week | b * workdays | emails""",
    83: """a | length without the difference | total_fence - difference | {unit}
b | length left over for {name1} | a / 2 | {unit}""",
    84: """a | main part of the warm time | multiplier * time_cold | minutes
b | time for a {unit} in warm water | a + extra_time | minutes
c | time for the cold swim | distance * time_cold | minutes
d | time for the warm swim | distance * b | minutes
e | difference between the swims | d - c | minutes""",
    85: """a | width of the {room_type} | area / length | {unit1}
b | sum of length and width | length + a | {unit1}
c | perimeter of the room | 2 * b | {unit1}""",
    87: """a | water in the giant cubes | num_large * weight_large | {unit}s
b | water in the medium cubes | num_medium * weight_medium | {unit}s
c | water in the small cubes | num_small / 2 | {unit}s
d | total water used | a + b + c | {unit}s
e | amount of water left | total_amount - d | {unit}s""",
    88: """a | number of seats already taken | graduate_seats + faculty_seats | seats
b | number of seats left | total_seats - a | seats
c | number of tickets for each graduate | b / graduate_seats | tickets""",
    89: """a | number of hidden eggs | num_dozen * 12 | eggs
b | number {name3} finds | found_first * multiplier | eggs
c | number {name4} finds | b - less_amount | eggs
d | number {name5} finds | fraction ~ c | eggs
e | number found in all | found_first + b + c + d | eggs
f | number of eggs still hidden | a - e | eggs""",
    91: """a | number of {fruit}s on the field | density * field_size | {fruit}s
b | number of harvests in a year | 12 / months_per_harvest | harvests
c | number of {fruit}s in a year | a * b | {fruit}s""",
    92: """a | money from the {items[0]} | quantities[0] * rounded_prices[0] | $
b | money from the {items[1]} | quantities[1] * rounded_prices[1] | $
c | money from the {items[2]} | quantities[2] * rounded_prices[2] | $
d | total {name} will make | a + b + c | $""",
    93: """a | number {name2} slew | fraction1 ~ initial_kills | {creature}
b | number {name3} slew | a * multiplier | {creature}
c | number {name4} slew | fraction2 ~ b | {creature}""",
    94: """a | first value of the shares | num_shares * price_per_share | $
b | gain in the first year | increase_pct % a | $
c | value after one year | a + b | $
d | loss in the second year | decrease_pct % c | $
e | final value | c - d | $""",
    95: """a | number of {food} in one day | daily[0] + daily[1] + daily[2] | {food}
b | number of {food} in one {time_period} | a * days | {food}""",
    96: """a | twice the amount for one {animal1} | 2 * n1 | {unit}
b | amount for one {animal2} | a - n2 | {unit}
c | amount for all {animal2}s | b * k2 | {unit}
d | amount for all {animal1}s | n1 * k1 | {unit}
e | total {name} needs | c + d | {unit}""",
    98: """a | weight of the {passenger_type} | num_passengers * weight_passenger | {unit}
b | total weight | weight_vehicle + weight_item + a | {unit}
c | force {name} needs | force_percent % b | {unit}""",
    99: """a | cost of the {item}s | quantity * unit_price | $
b | money left for {name} | initial_amount - a | $""",
}
