-- The days of the data, until today.
SELECT d.day, d.week, d.month, d.quarter, d.year, d.weekday
FROM calendar d
WHERE d.day >= (SELECT {{ day(MIN(f.first_started_at)) }} FROM repository_summaries f)
    AND d.day <= {{ today() }}
